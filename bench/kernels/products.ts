/**
 * Matrix products of SmolLM2-135M's shapes: GFLOP/s, and for few rows the bytes of weights read per second.
 *
 * usage: node dist/bench/kernels/products.js [--peers PYTHON] [--rows 1024,128,16,1]
 * With PYTHON (an interpreter with torch) its float32 product of each shape is measured in turn with ours.
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
const shapes = [
  [576, 576],
  [192, 576],
  [1536, 576],
  [576, 1536],
  [49152, 576],
] as const
const loraRank = 16

const { values: options } = parseArgs({
  options: { peers: { type: 'string' }, rows: { type: 'string', default: '1024,128,16,1' } },
})
const device = await Device.open('cpu')

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

function normal(shape: number[], dtype: 'float32' | 'bfloat16' = 'float32'): Tensor {
  const tensor = Tensor.empty(device, shape, dtype)
  const wide = Tensor.empty(device, shape)
  device.ops.random_normal(wide, 1, 2, 0, 1)
  device.ops.copy(tensor, wide)
  wide.dispose()
  return tensor
}

function nf4(of: Tensor): Tensor {
  const q = Tensor.emptyQuantized(device, of.shape, { type: 'nf4', blockSize: 64, doubleQuant: true })
  device.ops.quantize(q, of)
  return q
}

function torchSeconds(python: string, m: number, n: number, k: number): Record<'xw' | 'dyw' | 'dytx', number> {
  const script = join(ROOT, 'bench/peers/torch_products.py')
  const output = execFileSync(python, [script, ...[m, n, k, env.numThreads].map(String)], { encoding: 'utf8' })
  return JSON.parse(output)
}

const figures: Record<string, number> = {}
const table = new Table({ head: ['product', 'float32', 'bfloat16', 'nf4', 'torch', 'ratio'], style: { head: [], border: [] } })
for (const m of options.rows.split(',').map(Number)) {
  for (const [n, k] of shapes) {
    const flop = 2 * m * n * k
    const [x, dy, y, dx] = [normal([m, k]), normal([m, n]), normal([m, n]), normal([m, k])]
    const w = normal([n, k])
    const weights = { float32: w, bfloat16: normal([n, k], 'bfloat16'), nf4: nf4(w) }
    const bytes = { float32: 4, bfloat16: 2, nf4: 0.5 + 1 / 64 }
    const peer = options.peers ? torchSeconds(options.peers, m, n, k) : null
    const row = async (name: string, queue: (weight: Tensor) => void, other: number | undefined) => {
      const cells: string[] = []
      let own = 0
      for (const [type, weight] of Object.entries(weights)) {
        const time = await seconds(() => queue(weight))
        if (type === 'float32') own = time
        const gigabytes = (bytes[type as keyof typeof bytes] * n * k) / time / 1e9
        cells.push(`${(flop / time / 1e9).toFixed(0)}${m <= 16 ? ` (${gigabytes.toFixed(1)} GB/s)` : ''}`)
        figures[`${name} ${m}x${n}x${k} ${type} gigaflops`] = flop / time / 1e9
      }
      const ratio = other ? (other / own).toFixed(2) : ''
      if (other) figures[`${name} ${m}x${n}x${k} torch gigaflops`] = flop / other / 1e9
      table.push([`${name} ${m} x ${n} x ${k}`, ...cells, other ? (flop / other / 1e9).toFixed(0) : '', ratio])
    }
    await row('x Wᵀ', (weight) => device.ops.matmul(y, x, weight, 0, 1, 1, 0), peer?.xw)
    if (m >= 128) {
      await row('dy W', (weight) => device.ops.matmul(dx, dy, weight, 0, 0, 1, 0), peer?.dyw)
      if (n < 49152) {
        const [a, b, h] = [normal([loraRank, k]), normal([n, loraRank]), normal([m, loraRank])]
        const none = [null, null] as const
        const name = `linear + LoRA ${loraRank}`
        await row(name, (weight) => device.ops.linear(y, h, x, weight, ...none, a, b, 0, 1), peer?.xw)
        for (const tensor of [a, b, h]) tensor.dispose()
      }
    }
    for (const tensor of [x, dy, y, dx, ...Object.values(weights)]) tensor.dispose()
  }
}
process.stderr.write(`${table.toString()}\n`)
report({ name: 'products', figures, setting: { threads: env.numThreads, variant: device.variant } })
