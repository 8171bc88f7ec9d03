// bfloat16 copies of 4-bit weights (QUANTUNE_WEIGHT_COPIES): the same bits as without them, and never a stale one.
import t, { type Test } from 'tap'
import { Device, scope, Tensor } from '../../lib/tensor/index.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const skip = name.startsWith('cuda') ? false : 'needs QUANTUNE_TEST_DEVICE=cuda or cuda-emulated'
const rows = 520 // enough for a copy

/** The GPU under a name of its own each, without copies of weights and with them: a device reads the variable when it is opened. */
async function openBoth(): Promise<{ plain: Device; copying: Device }> {
  const [backend, index] = name.split(':')
  const names = Number(index ?? 0) === 0 ? [`${backend}:0`, backend!] : [backend!, name]
  delete process.env.QUANTUNE_WEIGHT_COPIES
  const plain = await Device.open(names[0])
  process.env.QUANTUNE_WEIGHT_COPIES = 'auto'
  const copying = await Device.open(names[1])
  delete process.env.QUANTUNE_WEIGHT_COPIES
  return { plain, copying }
}

/** The same numbers everywhere; where not, at which place first. */
const same = (t: Test, actual: number[][], expected: number[][], what = 'results') => {
  const first = actual.map((values, i) => values.findIndex((value, j) => value !== expected[i]![j]))
  t.strictSame(
    first,
    expected.map(() => -1),
    `${what}: the first place that differs`,
  )
}

/** Numbers that depend on nothing but their place and the seed. */
const numbers = (count: number, seed: number) =>
  Float32Array.from({ length: count }, (_, i) => (((i * 2654435761 + seed * 40503) >>> 8) % 2001) / 1000 - 1)

const random = (device: Device, shape: number[], seed: number, dtype: 'float32' | 'bfloat16' = 'bfloat16') =>
  Tensor.from(device, numbers(shape[0]! * shape[1]!, seed), shape, dtype)

function quantized(device: Device, shape: [number, number], seed: number, type: 'nf4' | 'fp4' = 'nf4'): Tensor {
  const weight = Tensor.emptyQuantized(device, shape, { type, blockSize: 64, doubleQuant: true })
  device.ops.quantize(weight, random(device, shape, seed, 'float32'))
  return weight
}

function forward(
  device: Device,
  x: Tensor,
  weight: Tensor,
  n: number,
  y = Tensor.empty(device, [rows, n], 'bfloat16'),
): Tensor {
  device.ops.linear(y, null, x, weight, null, null, null, null, 0, 1)
  return y
}

t.test('the same bits as without copies', { skip }, async (t) => {
  const { plain, copying } = await openBoth()
  const cases = [
    { n: 70, k: 64, type: 'nf4', rank: 0 },
    { n: 40, k: 50, type: 'fp4', rank: 0 }, // rows that are no multiple of a block
    { n: 20, k: 256, type: 'nf4', rank: 8 },
  ] as const
  for (const { n, k, type, rank } of cases) {
    const run = async (device: Device) => {
      const [x, dy, weight] = [random(device, [rows, k], 1), random(device, [rows, n], 2), quantized(device, [n, k], 3, type)]
      const a = rank ? random(device, [rank, k], 4, 'float32') : null
      const b = rank ? random(device, [n, rank], 5, 'float32') : null
      const results: number[][] = []
      for (let step = 0; step < 2; step++) {
        const [y, dx] = [Tensor.empty(device, [rows, n], 'bfloat16'), Tensor.empty(device, [rows, k], 'bfloat16')]
        device.ops.linear(y, null, x, weight, null, null, a, b, 0, 0.5)
        device.ops.linear_backward(dx, null, null, null, null, null, dy, x, weight, null, a, b, null, 0, 0.5, 0)
        results.push([...((await y.data()) as Float32Array)], [...((await dx.data()) as Float32Array)])
      }
      return results
    }
    same(t, await run(copying), await run(plain), `${n} x ${k}, ${type}, rank ${rank}`)
  }
})

t.test('a copy goes with what it is of', { skip }, async (t) => {
  const [n, k] = [40, 64] as const
  const { plain, copying } = await openBoth()
  const after = async (device: Device, change: (device: Device, weight: Tensor) => Tensor) => {
    const [x, weight] = [random(device, [rows, k], 1), quantized(device, [n, k], 3)]
    forward(device, x, weight, n)
    return [...((await forward(device, x, change(device, weight), n).data()) as Float32Array)]
  }
  const changes: Record<string, (device: Device, weight: Tensor) => Tensor> = {
    'quantized anew': (device, weight) => {
      device.ops.quantize(weight, random(device, [n, k], 9, 'float32'))
      return weight
    },
    'loaded anew': (device, weight) => {
      const blocks = (n * k) / 64
      const codes = Tensor.from(
        device,
        Uint8Array.from({ length: (n * k) / 2 }, (_, i) => (i * 37) % 256),
      )
      const scales = Tensor.from(
        device,
        Uint8Array.from({ length: blocks }, (_, i) => i % 256),
      )
      const [nested, table] = [Tensor.from(device, [0.5]), Tensor.from(device, numbers(256, 8))]
      device.ops.quantized_load(weight, codes, scales, nested, table, 0.25)
      return weight
    },
    'freed, its memory another weight': (device, weight) => {
      weight.dispose()
      return quantized(device, [n, k], 9)
    },
  }
  for (const [what, change] of Object.entries(changes))
    same(t, [await after(copying, change)], [await after(plain, change)], what)
})

t.test('recorded programs', { skip }, async (t) => {
  const [n, k] = [40, 64] as const
  const run = async (device: Device) => {
    const [x, weight, source] = [
      random(device, [rows, k], 1),
      quantized(device, [n, k], 3),
      random(device, [n, k], 9, 'float32'),
    ]
    const results: number[][] = []
    const keep = async (y: Tensor) => results.push([...((await y.data()) as Float32Array)])
    await keep(forward(device, x, weight, n))
    const y = Tensor.empty(device, [rows, n], 'bfloat16')
    const multiply = device.record(() => scope(() => void forward(device, x, weight, n, y)))
    const overwrite = device.record(() => scope(() => void device.ops.quantize(weight, source)))
    await keep(forward(device, x, weight, n))
    device.ops.quantize(weight, random(device, [n, k], 6, 'float32')) // the copy goes; the program has not held it
    device.replay(multiply)
    await keep(y)
    device.replay(overwrite) // no copy sees this happen
    await keep(forward(device, x, weight, n))
    device.replay(multiply)
    await keep(y)
    for (const program of [multiply, overwrite]) program.dispose()
    return results
  }
  const { plain, copying } = await openBoth()
  same(t, await run(copying), await run(plain))
})

// Last: no more copies are made then.
t.test('copies go when memory is short', { skip }, async (t) => {
  const [n, k] = [40, 64] as const
  const { copying: device } = await openBoth()
  const [x, weight] = [random(device, [rows, k], 1), quantized(device, [n, k], 3)]
  const first = [...((await forward(device, x, weight, n).data()) as Float32Array)]
  const tensors = Array.from({ length: 200 }, () => Tensor.empty(device, [2 ** 30]))
  await t.rejects(tensors.at(-1)!.rows(0, 1).data(), { code: 'ERR_OUT_OF_MEMORY' })
  for (const tensor of tensors) tensor.dispose()
  same(t, [[...((await forward(device, x, weight, n).data()) as Float32Array)]], [first], 'products go on without')
})
