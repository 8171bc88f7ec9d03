/**
 * Kernels on one GPU at the shapes of Llama 3 8B, bfloat16: each row beside PyTorch's operation on the same GPU in the same run,
 * or beside the limit it is measured against. `npm run bench -- --device cuda` runs it and writes down what it finds; each row is
 * also printed as soon as it is known.
 *
 * usage: node dist/bench/kernels/cuda.js [--device cuda] [--peers PYTHON] [--shapes full|tiny] [--only dense,nf4,few,attention,decode]
 * PYTHON is an interpreter with a torch that sees the GPU. "tiny" only shows that the program runs (also on cuda-emulated).
 */
import { execFileSync } from 'node:child_process'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Device, Tensor } from '../../lib/tensor/index.js'
import { describeGpu } from '../gpu-sections.js'
import type { Row } from '../sections.js'
import { median, report } from '../trial.js'

const PEER = join(resolve(dirname(fileURLToPath(import.meta.url)), '../../..'), 'bench/peers/torch_cuda.py')

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    peers: { type: 'string' },
    shapes: { type: 'string', default: 'full' },
    only: { type: 'string', default: 'dense,nf4,few,attention,decode' },
  },
})
const tiny = options.shapes === 'tiny'
const device = await Device.open(options.device)
const { compute } = await describeGpu(options.device)
const { ops } = device

/**
 * Median seconds of one call of `queue`, from `distinct` calls (each gets its number, so that it can take cold weights) recorded
 * as a program and replayed for at least 20 ms: what the GPU needs for them, as in a decode step, not what launching costs.
 */
async function seconds(queue: (i: number) => void, distinct = 1): Promise<number> {
  const program = device.record(() => {
    for (let i = 0; i < distinct; i++) queue(i)
  })
  const run = async (count: number) => {
    await device.settled()
    const start = performance.now()
    for (let i = 0; i < count; i++) device.replay(program)
    await device.settled()
    return (performance.now() - start) / count / 1000
  }
  const count = tiny ? 1 : Math.max(3, Math.ceil(0.02 / (await run(3))))
  const times: number[] = []
  for (let repeat = 0; repeat < (tiny ? 1 : 9); repeat++) times.push(await run(count))
  program.dispose()
  return median(times) / distinct
}

function normal(...shape: number[]): Tensor {
  const wide = Tensor.empty(device, shape)
  ops.random_normal(wide, 1, shape.length, 0, 1)
  const tensor = Tensor.empty(device, shape, 'bfloat16')
  ops.copy(tensor, wide)
  wide.dispose()
  return tensor
}

function nf4(n: number, k: number): Tensor {
  const w = normal(n, k)
  const q = Tensor.emptyQuantized(device, [n, k], { type: 'nf4', blockSize: 64, doubleQuant: true })
  ops.quantize(q, w)
  w.dispose()
  return q
}

type Request = readonly [string, ...number[]]
type Answer = number | [number, number]

/** The peer's seconds; all of one group in one process, which has the GPU to itself while it runs. */
function peer(requests: readonly Request[]): (Answer | undefined)[] {
  if (!options.peers) return requests.map(() => undefined)
  try {
    const output = execFileSync(options.peers, [PEER, options.device, JSON.stringify(requests)], { encoding: 'utf8' })
    return JSON.parse(output.trim().split('\n').pop()!)
  } catch (error) {
    process.stderr.write(`the peer failed, its figures are left out: ${(error as Error).message}\n`)
    return requests.map(() => undefined)
  }
}

const rows: Row[] = []

function add(what: string, unit: string, own: number, peerName: string, theirs: number | undefined, required?: number): void {
  const compared = theirs === undefined ? {} : { peer: peerName, theirs, ...(required === undefined ? {} : { required }) }
  rows.push({ what, unit, ours: own, ...compared })
  const beside = theirs === undefined ? '' : `, ${peerName} ${theirs.toPrecision(4)}, ratio ${(own / theirs).toFixed(3)}`
  process.stderr.write(`${what}: ${own.toPrecision(4)} ${unit}${beside}${required ? `, required ${required}` : ''}\n`)
}

const teraflops = (m: number, n: number, k: number, time: number) => (2 * m * n * k) / time / 1e12
const first = (answer: Answer | undefined) => (Array.isArray(answer) ? answer[0] : answer)

async function denseProducts(): Promise<void> {
  const sizes = tiny ? [128] : [4096, 8192]
  const others = peer(sizes.map((n) => ['product', n, n, n] as const))
  for (const [i, n] of sizes.entries()) {
    const [x, w, y] = [normal(n, n), normal(n, n), normal(n, n)]
    const time = await seconds(() => ops.matmul(y, x, w, 0, 1, 1, 0))
    const other = first(others[i])
    const theirs = other && teraflops(n, n, n, other)
    add(`bfloat16 product ${n}³`, 'TFLOP/s', teraflops(n, n, n, time), 'torch', theirs, compute === '9.0' ? 0.85 : 0.7)
    for (const tensor of [x, w, y]) tensor.dispose()
  }
}

async function quantizedProducts(): Promise<void> {
  const shapes = tiny
    ? [[128, 128]]
    : [
        [4096, 4096],
        [14336, 4096],
        [4096, 14336],
      ]
  for (const m of tiny ? [96] : [2048, 8192]) {
    for (const [n, k] of shapes as [number, number][]) {
      const [x, dy, y, dx, w] = [normal(m, k), normal(m, n), normal(m, n), normal(m, k), normal(n, k)]
      const [q, a, b] = [nf4(n, k), normal(16, k), normal(n, 16)]
      const h = Tensor.empty(device, [m, 16], 'bfloat16')
      const none = [null, null] as const
      const forward = (weight: Tensor) => seconds(() => ops.linear(y, null, x, weight, ...none, null, null, 0, 1))
      const backward = (weight: Tensor) =>
        seconds(() => ops.linear_backward(dx, null, null, null, null, null, dy, x, weight, null, null, null, null, 0, 1, 0))
      const name = `${m} x ${k} to ${n}`
      const own = 'ourselves, bfloat16 weights'
      const speed = (time: number) => teraflops(m, n, k, time)
      const dense = [speed(await forward(w)), speed(await backward(w))] as const
      add(`NF4 forward ${name}`, 'TFLOP/s', speed(await forward(q)), own, dense[0], 0.8)
      add(`NF4 backward ${name}`, 'TFLOP/s', speed(await backward(q)), own, dense[1], 0.8)
      const adapted = await seconds(() => ops.linear(y, h, x, q, ...none, a, b, 0, 1))
      add(`NF4 forward with LoRA 16 ${name}`, 'TFLOP/s', speed(adapted), own, dense[0])
      for (const tensor of [x, dy, y, dx, w, q, a, b, h]) tensor.dispose()
    }
  }
}

/** Weights that together are far larger than the second-level cache, taken in turn: each is read from memory. */
async function fewRows(): Promise<void> {
  const bytes = tiny ? 1 << 16 : 1 << 30
  const [copied] = peer([['copy', bytes]])
  const limit = copied && (2 * bytes) / first(copied)! / 1e9
  for (const [n, k] of (tiny
    ? [[64, 128]]
    : [
        [4096, 4096],
        [28672, 4096],
        [4096, 14336],
      ]) as [number, number][]) {
    const count = tiny ? 2 : 48
    for (const m of [1, 10]) {
      const [x, y] = [normal(m, k), normal(m, n)]
      const packed = Array.from({ length: count }, () => nf4(n, k))
      const time = await seconds((i) => ops.linear(y, null, x, packed[i]!, null, null, null, null, 0, 1), count)
      const read = (n * k * (0.5 + 1 / 64)) / time / 1e9
      add(`NF4 product of ${m} x ${k} to ${n}`, 'GB/s', read, 'bytes copied by torch', limit, m === 1 ? 0.75 : undefined)
      for (const tensor of [x, y, ...packed]) tensor.dispose()
    }
  }
}

async function attention(): Promise<void> {
  const [heads, headsKv, d] = tiny ? [2, 1, 64] : [32, 8, 128]
  const lengths = tiny ? [64] : [2048, 4096, 8192]
  const others = peer(lengths.map((n) => ['attention', n, heads, headsKv, d] as const))
  for (const [i, n] of lengths.entries()) {
    const [q, k, v, o, dO, dq] = [heads, headsKv, headsKv, heads, heads, heads].map((h) => normal(n, h, d)) as Tensor[]
    const [dk, dv] = [Tensor.empty(device, [n, headsKv, d]), Tensor.empty(device, [n, headsKv, d])]
    const lse = Tensor.empty(device, [n, heads])
    const end = Tensor.from(device, new Int32Array(n).fill(n), [n], 'int32')
    const plan = Tensor.empty(device, [device.attentionPlanSize(n, n)], 'int32')
    ops.attention_plan(plan, null, end, n)
    const scale = d ** -0.5
    const forward = await seconds(() => ops.attention(o!, lse, q!, k!, v!, null, end, plan, scale))
    const backward = await seconds(() => ops.attention_backward(dq!, dk, dv, dO!, o!, lse, q!, k!, v!, null, end, plan, scale))
    // Causal: half of the pairs; forward two products, backward five.
    const flops = (products: number, time: number) => (products * n * n * heads * d) / time / 1e12
    const other = others[i] as [number, number] | undefined
    const sdpa = "torch's scaled_dot_product_attention"
    add(`attention forward, ${n} tokens`, 'TFLOP/s', flops(2, forward), sdpa, other && flops(2, other[0]), 0.6)
    add(`attention backward, ${n} tokens`, 'TFLOP/s', flops(5, backward), sdpa, other && flops(5, other[1]), 0.6)
    for (const tensor of [q, k, v, o, dO, dq, dk, dv, lse, end, plan]) tensor!.dispose()
  }
}

/** One step of one sequence whose prompt lies in blocks of one token: bytes of keys and values read. */
async function decodeAttention(): Promise<void> {
  const [heads, headsKv, d] = tiny ? [2, 1, 64] : [32, 8, 128]
  for (const n of tiny ? [64] : [2048, 8192, 32768]) {
    const bytes = 2 * n * headsKv * d * 2
    const caches = Array.from({ length: tiny ? 1 : Math.ceil(2e8 / bytes) }, () => [
      normal(n, 1, headsKv, d),
      normal(n, 1, headsKv, d),
    ])
    const [q, o, steps] = [normal(1, heads, d), normal(1, heads, d), normal(1, 1, headsKv, d)]
    const int32 = (values: Int32Array, ...shape: number[]) => Tensor.from(device, values, shape, 'int32')
    const table = int32(
      Int32Array.from({ length: n }, (_, i) => i),
      1,
      n,
    )
    const [lengths, ancestors, count] = [int32(Int32Array.of(n), 1), int32(Int32Array.of(0), 1, 1), int32(Int32Array.of(0), 1)]
    const time = await seconds((i) => {
      const [k, v] = caches[i]! // none is still in the GPU's own cache
      ops.attention_decode(o, q, k!, v!, table, lengths, steps, steps, ancestors, count, d ** -0.5)
    }, caches.length)
    add(`attention of one decoding step, ${n} tokens`, 'GB/s', bytes / time / 1e9, '', undefined)
    for (const tensor of [...caches.flat(), q, o, steps, table, lengths, ancestors, count]) tensor.dispose()
  }
}

const groups: Record<string, () => Promise<void>> = {
  dense: denseProducts,
  nf4: quantizedProducts,
  few: fewRows,
  attention,
  decode: decodeAttention,
}
for (const name of options.only.split(',')) {
  const group = groups[name]
  if (!group) throw new Error(`there is no group "${name}"; known are ${Object.keys(groups).join(', ')}`)
  await group()
}
report({
  name: 'cuda',
  figures: {},
  rows,
  setting: { device: device.name, variant: device.variant, compute, shapes: options.shapes },
})
