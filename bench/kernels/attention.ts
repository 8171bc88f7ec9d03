/**
 * Attention's kernels, causal: TFLOP/s of forward and backward (2 T² D and 5 T² D a head: what the definition needs, however often a
 * kernel computes a product), and of one decoding step the bytes of keys and values read per second.
 *
 * usage: node dist/bench/kernels/attention.js [--device cuda] [--dtype bfloat16] [--peers PYTHON] [--lengths 2048,4096,8192]
 *   [--heads 32] [--kv-heads 8] [--size 128]
 * With PYTHON (an interpreter with torch) its scaled_dot_product_attention of each length is measured in turn with ours.
 */
import { execFileSync } from 'node:child_process'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { env } from '../../lib/env.js'
import { Device, Tensor } from '../../lib/tensor/index.js'
import { report } from '../trial.js'

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../../..')
const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    dtype: { type: 'string', default: 'bfloat16' },
    peers: { type: 'string' },
    lengths: { type: 'string', default: '2048,4096,8192' },
    heads: { type: 'string', default: '32' },
    'kv-heads': { type: 'string', default: '8' },
    size: { type: 'string', default: '128' },
  },
})
const [heads, kvHeads, size] = [options.heads, options['kv-heads'], options.size].map(Number) as [number, number, number]
const dtype = options.dtype as 'float32' | 'bfloat16'
const device = await Device.open(options.device)
const { ops } = device

/** Seconds of one call: the best of several runs of as many calls as take about 30 ms. */
async function seconds(queue: () => void): Promise<number> {
  const run = async (count: number) => {
    await device.settled()
    const start = performance.now()
    for (let i = 0; i < count; i++) queue()
    await device.settled()
    return (performance.now() - start) / count / 1000
  }
  await run(1)
  const count = Math.max(1, Math.round(0.03 / (await run(2))))
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < 10; i++) best = Math.min(best, await run(count))
  return best
}

function normal(shape: number[]): Tensor {
  const tensor = Tensor.empty(device, shape, dtype)
  const wide = Tensor.empty(device, shape)
  ops.random_normal(wide, 1, 2, 0, 1)
  ops.copy(tensor, wide)
  wide.dispose()
  return tensor
}
const int32 = (values: number[], shape = [values.length]) => Tensor.from(device, Int32Array.from(values), shape, 'int32')

type Times = { forward: number; backward: number }

function torchSeconds(python: string, length: number): Times {
  const name = options.device.startsWith('cuda') ? 'cuda' : 'cpu'
  const args = [length, heads, kvHeads, size, name, dtype, env.numThreads].map(String)
  return JSON.parse(
    execFileSync(python, [join(ROOT, 'bench/peers/torch_attention.py'), ...args], { encoding: 'utf8' }),
  ) as Times
}

async function training(length: number): Promise<Times> {
  const [q, dO, o, dq] = [0, 1, 2, 3].map(() => normal([length, heads, size])) as [Tensor, Tensor, Tensor, Tensor]
  const [k, v] = [0, 1].map(() => normal([length, kvHeads, size])) as [Tensor, Tensor]
  const [dk, dv] = [0, 1].map(() => Tensor.empty(device, k.shape)) as [Tensor, Tensor]
  const lse = Tensor.empty(device, [length, heads])
  const end = int32(new Array(length).fill(length))
  const plan = Tensor.empty(device, [device.attentionPlanSize(length, length)], 'int32')
  ops.attention_plan(plan, null, end, length)
  const scale = 1 / Math.sqrt(size)
  const times = {
    forward: await seconds(() => ops.attention(o, lse, q, k, v, null, end, plan, scale)),
    backward: await seconds(() => ops.attention_backward(dq, dk, dv, dO, o, lse, q, k, v, null, end, plan, scale)),
  }
  for (const tensor of [q, dO, o, dq, k, v, dk, dv, lse, end, plan]) tensor.dispose()
  return times
}

/** One step of one sequence whose prompt lies in blocks of one token. Several caches in turn, so that none stays in the GPU's own. */
async function decoding(length: number): Promise<number> {
  const caches = Array.from({ length: 8 }, () => normal([length, 1, kvHeads, size]))
  const steps = normal([1, 1, kvHeads, size])
  const [q, o] = [normal([1, heads, size]), normal([1, heads, size])]
  const table = int32(
    Array.from({ length }, (_, i) => i),
    [1, length],
  )
  const [lengths, ancestors, count] = [int32([length]), int32([0], [1, 1]), int32([0])]
  let turn = 0
  const time = await seconds(() => {
    const [k, v] = [caches[turn]!, caches[turn + 1]!]
    turn = (turn + 2) % caches.length
    ops.attention_decode(o, q, k, v, table, lengths, steps, steps, ancestors, count, 1 / Math.sqrt(size))
  })
  for (const tensor of [...caches, steps, q, o, table, lengths, ancestors, count]) tensor.dispose()
  return time
}

const figures: Record<string, number> = {}
const table = new Table({ head: ['attention', 'TFLOP/s', 'torch', 'ratio'], style: { head: [], border: [] } })
for (const length of options.lengths.split(',').map(Number)) {
  const own = await training(length)
  const peer = options.peers ? torchSeconds(options.peers, length) : null
  for (const [name, factor] of [
    ['forward', 2],
    ['backward', 5],
  ] as const) {
    const teraflop = (factor * length ** 2 * size * heads) / 1e12
    figures[`${name} ${length} teraflops`] = teraflop / own[name]
    if (peer) figures[`${name} ${length} torch teraflops`] = teraflop / peer[name]
    const other = peer ? [(teraflop / peer[name]).toFixed(2), (peer[name] / own[name]).toFixed(2)] : ['', '']
    table.push([`${name} ${length}`, (teraflop / own[name]).toFixed(2), ...other])
  }
  const gigabytes = (2 * length * kvHeads * size * (dtype === 'float32' ? 4 : 2)) / 1e9
  figures[`decode ${length} gigabytesPerSecond`] = gigabytes / (await decoding(length))
  table.push([`decode ${length}`, `${figures[`decode ${length} gigabytesPerSecond`]!.toFixed(1)} GB/s`, '', ''])
}
process.stderr.write(`${table.toString()}\n`)
report({
  name: 'attention',
  figures,
  setting: { device: options.device, dtype, heads, kvHeads, size, variant: device.variant },
})
