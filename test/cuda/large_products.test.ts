// Products of the size of a real model's, where a GPU takes its largest tiles and all its multiprocessors: on tensor cores beside the
// same product in float32 arithmetic, on the same device. Runs on QUANTUNE_TEST_DEVICE where that is cuda, or, small, cuda-emulated.
import t, { type Test } from 'tap'
import { Device, type DType, Tensor } from '../../lib/tensor/index.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const skip = name.startsWith('cuda') ? false : 'needs QUANTUNE_TEST_DEVICE=cuda or cuda-emulated'
// Rows and outputs fill neither their last tiles nor, backward, the last step of k.
const [m, n, k] = name.startsWith('cuda-emulated') ? ([300, 264, 192] as const) : ([4000, 4104, 3008] as const)
const r = 16

const noise = (device: Device, shape: [number, number], site: number, dtype: DType): Tensor => {
  const tensor = Tensor.empty(device, shape, dtype)
  device.ops.random_normal(tensor, 7, site, 0, 1)
  return tensor
}

const copy = (from: Tensor, dtype: DType): Tensor => {
  const to = Tensor.empty(from.device, from.shape, dtype)
  from.device.ops.copy(to, from)
  return to
}

/** No value further than `allowed` from what it should be, beside the one rounding of a bfloat16 result. */
async function close(t: Test, actual: Tensor, expected: Tensor, allowed: number, what: string): Promise<void> {
  const [values, wanted] = [await copy(actual, 'float32').data(), await expected.data()]
  let worst = -1
  let most = 1
  for (let i = 0; i < wanted.length; i++) {
    const excess = Math.abs(values[i]! - wanted[i]!) / (allowed + 2 ** -8 * Math.abs(wanted[i]!))
    if (!(excess <= most)) {
      most = excess
      worst = i
      if (Number.isNaN(excess)) break
    }
  }
  const width = actual.shape[1]!
  const place = `row ${Math.floor(worst / width)}, column ${worst % width}`
  t.equal(worst, -1, worst < 0 ? what : `${what}: ${values[worst]} instead of ${wanted[worst]} at ${place}`)
}

for (const type of ['bfloat16', 'nf4', 'fp4'] as const) {
  for (const adapter of [false, true]) {
    t.test(`${type} weights${adapter ? ` and an adapter of rank ${r}` : ''}`, { skip }, async (t) => {
      const device = await Device.open(name)
      const { ops } = device
      const x = noise(device, [m, k], 1, 'bfloat16')
      const dy = noise(device, [m, n], 2, 'bfloat16')
      const [a, b] = adapter ? [noise(device, [r, k], 3, 'bfloat16'), noise(device, [n, r], 4, 'bfloat16')] : [null, null]
      const dense = noise(device, [n, k], 5, 'bfloat16')
      let weight = dense
      if (type !== 'bfloat16') {
        weight = Tensor.emptyQuantized(device, [n, k], { type, blockSize: 64, doubleQuant: true })
        ops.quantize(weight, dense)
        ops.dequantize(dense, weight) // what tiles dequantize, rounded as they round
      }
      const scale = 0.5
      // A product of standard normal numbers over k is sqrt(k) in size; the adapter's inner products round once more, to 2^-9.
      const size = (over: number) => Math.sqrt(over) * (adapter ? 1 + scale * Math.sqrt(r) * 4 : 1)
      const allowed = (over: number) => 2 ** -12 * Math.sqrt(over) + (adapter ? 2 ** -9 * 4 * size(over) : 0)

      const [y, y32] = [Tensor.empty(device, [m, n], 'bfloat16'), Tensor.empty(device, [m, n])]
      const x32 = copy(x, 'float32')
      ops.linear(y, null, x, weight, null, null, a, b, 0, scale)
      ops.linear(y32, null, x32, dense, null, null, a, b, 0, scale)
      await close(t, y, y32, allowed(k), 'forward')

      const [dx, dx32] = [Tensor.empty(device, [m, k], 'bfloat16'), Tensor.empty(device, [m, k])]
      const dy32 = copy(dy, 'float32')
      ops.linear_backward(dx, null, null, null, null, null, dy, x, weight, null, a, b, null, 0, scale, 0)
      ops.linear_backward(dx32, null, null, null, null, null, dy32, x32, dense, null, a, b, null, 0, scale, 0)
      await close(t, dx, dx32, allowed(n), 'backward')

      if (type === 'bfloat16') {
        const [dw, dw32] = [Tensor.zeros(device, [n, k]), Tensor.zeros(device, [n, k])]
        ops.linear_backward(null, null, dw, null, null, null, dy, x, weight, null, a, b, null, 0, scale, 0)
        ops.linear_backward(null, null, dw32, null, null, null, dy32, x32, dense, null, a, b, null, 0, scale, 0)
        await close(t, dw, dw32, 2 ** -10 * Math.sqrt(m), 'gradient of the weight')
        for (const tensor of [dw, dw32]) tensor.dispose()
      }
      for (const tensor of new Set([x, dy, a, b, dense, weight, y, y32, x32, dx, dx32, dy32])) tensor?.dispose()
    })
  }
}
