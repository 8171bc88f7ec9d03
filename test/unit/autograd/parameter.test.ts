import t from 'tap'
import { Parameter } from '../../../lib/autograd/index.js'
import { Device } from '../../../lib/tensor/device.js'
import { scope } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'

const device = await Device.open('cpu')

t.test('a 16-bit weight becomes a float32 master when it is to be trained', async (t) => {
  const parameter = scope(() => new Parameter('w', Tensor.from(device, [0.5, -2], [2], 'bfloat16')))
  t.equal(parameter.requiresGrad, false)
  parameter.requiresGrad = true
  t.equal(parameter.dtype, 'float32')
  t.same(await parameter.data(), Float32Array.of(0.5, -2))
  t.equal(await parameter.grad(), null)
  parameter.gradientBuffer()
  t.same(await parameter.grad(), Float32Array.of(0, 0))
  parameter.requiresGrad = false
  t.equal(parameter.gradient, null, 'a frozen parameter holds no gradient')
  parameter.dispose()
  t.ok(parameter.value.disposed)
})

t.test('a 4-bit weight reads dequantized and cannot be trained', async (t) => {
  const weight = Tensor.from(
    device,
    Float32Array.from({ length: 128 }, (_, i) => (i % 64 === 0 ? -1 : 1)),
    [2, 64],
  )
  const quantized = Tensor.emptyQuantized(device, [2, 64], { type: 'nf4', blockSize: 64, doubleQuant: false })
  device.ops.quantize(quantized, weight)
  const parameter = new Parameter('w', quantized)
  t.same(await parameter.data(), await weight.data())
  t.throws(
    () => {
      parameter.requiresGrad = true
    },
    { code: 'ERR_INVALID_ARGUMENT', message: /w is nf4/ },
  )
  weight.dispose()
  parameter.dispose()
})

t.test('exchanging the value keeps the shape', async (t) => {
  const parameter = new Parameter('w', Tensor.from(device, [1, 2]))
  const old = parameter.exchange(Tensor.from(device, [3, 4]))
  t.same(await old.data(), Float32Array.of(1, 2))
  t.same(await parameter.data(), Float32Array.of(3, 4))
  const wrong = Tensor.from(device, [1, 2, 3])
  t.throws(() => parameter.exchange(wrong), { code: 'ERR_INVALID_ARGUMENT', message: /w has shape \[2\]; got \[3\]/ })
  for (const tensor of [old, wrong]) tensor.dispose()
  parameter.dispose()
})
