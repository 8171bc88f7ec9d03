import t from 'tap'
import type { QuantuneError } from '../../../lib/errors.js'
import { Device, scope, Tensor, withCallSite } from '../../../lib/tensor/index.js'
import { testDevices } from '../../support/devices.js'

async function failureOf(promise: Promise<unknown>): Promise<QuantuneError> {
  return promise.then(
    () => {
      throw new Error('was expected to fail')
    },
    (error: QuantuneError) => error,
  )
}

for (const name of testDevices()) {
  const device = await Device.open(name)
  const { ops } = device

  t.test(`${name}: operations run in order, across pages`, async (t) => {
    const x = Tensor.zeros(device, [4])
    const one = Tensor.from(device, [1, 1, 1, 1])
    for (let i = 0; i < 12000; i++) ops.add(x, x, one, 1)
    t.strictSame([...(await x.data())], [12000, 12000, 12000, 12000])
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 3000; i++) ops.add(x, x, one, -1)
      await device.settled()
    }
    t.strictSame([...(await x.data())], [0, 0, 0, 0], 'pages are used again')
  })

  t.test(`${name}: poison`, async (t) => {
    const x = Tensor.from(device, [1, 2])
    const wrong = Tensor.from(device, [1, 2, 3])
    const y = Tensor.empty(device, [2])
    const z = Tensor.empty(device, [2])
    const queueWrongAdd = () => withCallSite('Model.forward', () => ops.add(y, x, wrong, 1))
    queueWrongAdd()
    ops.add(z, y, x, 1)
    const error = await failureOf(z.data())
    t.equal(error.code, 'ERR_INVALID_ARGUMENT')
    t.equal(error.message, 'add: b has the shape [3], expected as many elements as a [2] (queued by Model.forward)')
    t.match(error.details, { op: 'add', call: 'Model.forward', device: name })
    t.match(error.stack, /queueWrongAdd/, 'the stack is that of the call that queued it')
    await t.rejects(y.view([1, 2]).data(), { message: /add: b/ }, 'a view shares the poison')
    t.strictSame([...(await x.data())], [1, 2], 'operands stay good')
    ops.add(z, x, x, 1)
    t.strictSame([...(await z.data())], [2, 4], 'overwriting heals')
    ops.fill(y.rows(0, 1), 0)
    await t.rejects(y.data(), { message: /add: b/ }, 'overwriting a part does not')
    y.write([5, 6])
    t.strictSame([...(await y.data())], [5, 6])
  })

  t.test(`${name}: the optimizer skips poisoned gradients and says so in its flag`, async (t) => {
    const tensor = (values: number[]) => Tensor.from(device, values)
    const [p, g, m, v, norm] = [tensor([1]), tensor([1]), tensor([0]), tensor([0]), tensor([1])]
    const flag = Tensor.from(device, Int32Array.of(0))
    ops.add(g, g, tensor([1, 2]), 1)
    ops.adamw([p], [g], [m], [v], norm, flag, 0.1, 0.9, 0.999, 1e-8, 0, 1, 1)
    t.strictSame([...(await p.data())], [1], 'parameters stay what they were')
    await t.rejects(flag.data(), { message: /^add: b/ })
  })

  t.test(`${name}: out of memory poisons one tensor, and the device goes on`, async (t) => {
    const huge = Tensor.empty(device, [2 ** 30, 2 ** 14], 'float32', 'cache')
    const y = Tensor.empty(device, [1])
    ops.sum(y, huge, 1, 0)
    const error = await failureOf(y.data())
    t.equal(error.code, 'ERR_OUT_OF_MEMORY')
    t.match(error.message, /not enough memory for 70368744177664 bytes of cache.*in use now:.*weights: [0-9.]+ MiB/s)
    t.type((error.details.memory as { current: { cache: number } }).current.cache, 'number')
    await t.rejects(huge.data(), { code: 'ERR_OUT_OF_MEMORY' })
    huge.dispose()
    t.strictSame([...(await Tensor.from(device, [3]).data())], [3])
  })

  t.test(`${name}: memory returns to where it was`, async (t) => {
    const x = Tensor.zeros(device, [64])
    await device.settled()
    const before = device.memoryUsage().current
    for (let i = 0; i < 1000; i++) {
      scope(() => {
        const a = Tensor.empty(device, [64, 1 + (i % 7)], 'float32', 'gradients')
        ops.fill(a, i)
        const b = a.view([-1]).rows(0, 64)
        ops.add(x, x, b, 1)
      })
    }
    t.strictSame([...(await x.data())].slice(0, 2), [499500, 499500], 'disposal waits for what was queued before')
    await device.settled()
    t.strictSame(device.memoryUsage().current, before)
    t.ok(device.memoryUsage().peak.gradients >= 64 * 4)
    device.resetPeak()
    t.equal(device.memoryUsage().peak.gradients, 0)
    x.dispose()
    await device.settled()
    t.equal(device.memoryUsage().current.activations, before.activations - 256)
  })

  t.test(`${name}: reads overlap with what is queued later`, async (t) => {
    const x = Tensor.from(device, [1])
    const reads = [x.item()]
    for (let i = 2; i <= 20; i++) {
      x.write([i])
      reads.push(x.item())
    }
    t.strictSame(
      await Promise.all(reads),
      Array.from({ length: 20 }, (_, i) => i + 1),
    )
  })

  t.test(`${name}: wrong arguments are refused before anything is queued`, async (t) => {
    const x = Tensor.from(device, [1])
    const loose = ops as unknown as Record<string, (...args: unknown[]) => void>
    t.throws(() => loose.add!(x, x, x), { message: 'add takes 4 arguments (out, a, b, alpha), got 3' })
    t.throws(() => loose.add!(x, x, null, 1), { message: /add: b must be a tensor, got null/ })
    t.throws(() => loose.add!(x, x, x, '1'), { message: /add: alpha must be a number, got string/ })
    t.throws(() => loose.fill_list!(x, 1), { message: /fill_list: outs must be an array of tensors/ })
    t.throws(() => loose.increment!(x, 0.5), { message: /increment: by must be an integer/ })
    const other = await Device.open(name === 'cpu' ? 'cpu-late' : 'cpu')
    t.throws(() => ops.fill(Tensor.from(other, [1]), 0), { message: /fill: out is on another device/ })
  })
}

t.test('what is kept for later stays near the most there has been', async (t) => {
  const device = await Device.open('cpu')
  await device.settled()
  device.resetPeak()
  const megabyte = 2 ** 18
  for (const megabytes of [20, 30, 45, 70, 31, 22, 9]) {
    scope(() => {
      for (let left = 140; left >= megabytes; left -= megabytes) Tensor.empty(device, [megabytes, megabyte])
    })
    await device.settled()
    const { current, peak, cached } = device.memoryUsage()
    t.ok(current.total + cached <= peak.total * 1.13 + 32 * 2 ** 20, `${cached / 2 ** 20} MiB wait after ${megabytes}`)
  }
})

t.test('aliasing that an operation does not allow', async (t) => {
  const { ops } = await Device.open('cpu')
  const x = Tensor.from(await Device.open('cpu'), [1, 2, 3, 4], [2, 2])
  ops.matmul(x, x, x, 0, 0, 1, 0)
  await t.rejects(x.data(), { message: /matmul: c \[2, 2\] and a \[2, 2\] share memory/ })
})

t.test('a kernel that fails on a value', async (t) => {
  for (const name of ['cpu', 'cpu-late']) {
    const device = await Device.open(name)
    const table = Tensor.from(device, [1, 2, 3, 4], [2, 2])
    const y = Tensor.empty(device, [1, 2])
    device.ops.gather_rows(y, table, Tensor.from(device, Int32Array.of(2)))
    const error = await failureOf(y.data())
    t.equal(error.code, 'ERR_INVALID_ARGUMENT')
    if (name === 'cpu') t.match(error.message, /gather_rows: rows\[0\] is 2/)
  }
  const late = await Device.open('cpu-late')
  await t.rejects(Tensor.from(late, [1]).data(), 'the late device, like a GPU, is lost after it')
})
