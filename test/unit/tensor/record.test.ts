import t from 'tap'
import { Device, scope, Tensor } from '../../../lib/tensor/index.js'
import { testDevices } from '../../support/devices.js'

for (const name of testDevices()) {
  const device = await Device.open(name)
  const { ops } = device

  t.test(`${name}: records once, replays often`, async (t) => {
    const x = Tensor.from(device, [1, 2])
    const total = Tensor.zeros(device, [2])
    let doubled!: Tensor
    const program = device.record(() => {
      doubled = Tensor.empty(device, [2])
      const three = Tensor.from(device, [3, 3])
      ops.scale(doubled, x, null, 2)
      ops.add(doubled, doubled, three, 1)
      ops.add(total, total, doubled, 1)
      three.dispose()
    })
    t.strictSame([...(await total.data())], [0, 0], 'recording runs nothing')
    device.replay(program)
    device.replay(program)
    t.strictSame([...(await total.data())], [10, 14])
    x.write([10, 20])
    device.replay(program)
    t.strictSame([...(await doubled.data())], [23, 43], 'addresses are fixed, values are not')
    t.strictSame([...(await total.data())], [33, 57])
    program.dispose()
    program.dispose()
    t.strictSame([...(await doubled.data())], [23, 43], 'a tensor that is still held outlives the program')
    t.throws(() => device.replay(program), { code: 'ERR_DISPOSED' })
    doubled.dispose()
  })

  t.test(`${name}: a program keeps its tensors and gives them back`, async (t) => {
    await device.settled()
    const before = device.memoryUsage().current.total
    const out = Tensor.empty(device, [1024])
    const steps = 50
    const program = device.record(() =>
      scope(() => {
        let x = Tensor.empty(device, [1024])
        ops.fill(x, 1)
        for (let i = 0; i < steps; i++) {
          const next = Tensor.empty(device, [1024])
          ops.add(next, x, x, 0.5)
          x.dispose()
          x = next
        }
        ops.copy(out, x)
      }),
    )
    await device.settled()
    const held = device.memoryUsage().current.total - before - 4096
    t.ok(held >= 2 * 4096 && held <= 6 * 4096, `what is released while recording is used again: ${held} bytes`)
    const other = Array.from({ length: 8 }, () => Tensor.zeros(device, [1024]))
    device.replay(program)
    const value = (await out.data())[1023]!
    t.ok(Math.abs(value / 1.5 ** steps - 1) < 1e-5)
    for (const tensor of other) t.ok((await tensor.data()).every((v) => v === 0))
    for (const tensor of [...other, out]) tensor.dispose()
    program.dispose()
    await device.settled()
    t.equal(device.memoryUsage().current.total, before)
  })

  t.test(`${name}: failures`, async (t) => {
    const x = Tensor.from(device, [1, 2])
    let y!: Tensor
    const program = device.record(() => {
      y = Tensor.empty(device, [2])
      ops.add(y, x, Tensor.from(device, [1]), 1)
    })
    device.replay(program)
    await t.rejects(y.data(), { message: /add: b has the shape \[1\]/ })
    program.dispose()
    t.throws(
      () =>
        device.record(() => {
          throw new Error('no')
        }),
      { message: 'no' },
    )
    device
      .record(() => {
        t.throws(() => device.record(() => {}), { message: /another recording/ })
        t.throws(() => device.replay(program), { code: 'ERR_DISPOSED' })
        void t.rejects(x.data(), { message: /while recording/ })
      })
      .dispose()
    t.strictSame([...(await x.data())], [1, 2])
  })
}
