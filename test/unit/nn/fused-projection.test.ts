import t from 'tap'
import { FusedProjection } from '../../../lib/nn/index.js'
import { Device } from '../../../lib/tensor/device.js'
import { scope } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'

const device = await Device.open('cpu')
const values = (length: number) => Float32Array.from({ length }, (_, i) => i)

t.test('splits the columns of a fused projection', async (t) => {
  const projection = new FusedProjection(3)
  const x = Tensor.from(device, values(12), [2, 6])
  const parts = scope(() => projection.split(x))
  t.same(await Promise.all(parts.map((part) => part.data())), [
    Float32Array.of(0, 1, 6, 7),
    Float32Array.of(2, 3, 8, 9),
    Float32Array.of(4, 5, 10, 11),
  ])
  for (const tensor of [x, ...parts]) tensor.dispose()
})

t.test('row numbers made while a program was recorded outlive it, and many lengths do not pile up', async (t) => {
  const projection = new FusedProjection(2)
  const x = Tensor.from(device, values(6), [3, 2])
  const program = device.record(() => {
    scope(() => void projection.split(x))
  })
  device.replay(program)
  program.dispose()
  const [first, second] = scope(() => projection.split(x)) as [Tensor, Tensor]
  t.same(await first.data(), Float32Array.of(0, 2, 4))
  t.same(await second.data(), Float32Array.of(1, 3, 5))
  await device.settled()
  const { other } = device.memoryUsage().current
  for (let length = 1; length <= 40; length++) {
    scope(() => void projection.split(Tensor.from(device, values(2 * length), [length, 2])))
  }
  await device.settled()
  t.ok(device.memoryUsage().current.other - other < 16 * 40 * 4 * 2)
  for (const tensor of [x, first, second]) tensor.dispose()
})
