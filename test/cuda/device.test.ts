// What only a GPU does: values that its kernels refuse, programs as graphs, memory that runs out, refusals. Runs on
// QUANTUNE_TEST_DEVICE where that is cuda or cuda-emulated.
import t from 'tap'
import { doctor } from '../../lib/doctor.js'
import type { QuantuneError } from '../../lib/errors.js'
import { Device, scope, Tensor } from '../../lib/tensor/index.js'
import { probe, whyRefused } from '../../lib/tensor/probe.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const backend = name.split(':')[0]!
const emulated = backend === 'cuda-emulated'
const skip = backend.startsWith('cuda') ? false : 'needs QUANTUNE_TEST_DEVICE=cuda or cuda-emulated'
const int32 = (device: Device, values: number[]) => Tensor.from(device, Int32Array.from(values))

t.test('a value that a kernel refuses poisons what came of it, and nothing else', { skip }, async (t) => {
  const device = await Device.open(name)
  const { ops } = device
  const table = Tensor.from(device, [1, 2, 3, 4, 5, 6], [3, 2])
  const good = int32(device, [2, 0])
  const bad = int32(device, [1, 3])
  const [y, z, other] = [Tensor.zeros(device, [2, 2]), Tensor.zeros(device, [2, 2]), Tensor.zeros(device, [2, 2])]
  const lookup = (ids: Tensor, into: Tensor) => ops.embedding(into, ids, table, null, null)

  lookup(good, y)
  const before = y.data()
  lookup(bad, y)
  lookup(good, other)
  ops.add(z, y, other, 1)
  const failed = z.data().catch((error: QuantuneError) => error)
  ops.add(z, other, other, 1)
  const healed = z.data()
  t.strictSame([...(await before)], [5, 6, 1, 2], 'a read queued before it')
  const error = (await failed) as QuantuneError
  t.equal(error.code, 'ERR_INVALID_ARGUMENT')
  t.match(error.message, /embedding: token id 3 at index 1 is out of range/)
  t.strictSame([...(await healed)], [10, 12, 2, 4], 'overwriting heals')
  t.strictSame([...(await other.data())], [5, 6, 1, 2], 'another operation')
  await t.rejects(y.data(), { message: /token id 3/ }, 'the poison stays')
  ops.add(z, y, other, 1)
  await t.rejects(z.data(), { message: /token id 3/ }, 'and passes on to what is queued later')
  lookup(good, y)
  t.strictSame([...(await y.data())], [5, 6, 1, 2])
})

t.test('programs', { skip }, async (t) => {
  const device = await Device.open(name)
  const { ops } = device
  const table = Tensor.from(device, [1, 2, 3, 4], [2, 2])
  const ids = int32(device, [0])
  const total = Tensor.zeros(device, [1])
  let y!: Tensor
  const program = device.record(() =>
    scope(() => {
      y = Tensor.empty(device, [1, 2])
      const constant = Tensor.from(device, [10, 20], [1, 2])
      ops.embedding(y, ids, table, null, null)
      ops.add(y, y, constant, 1)
      ops.sum(total, y, 1, 1) // takes scratch memory
      return y
    }),
  )
  for (let i = 0; i < 3; i++) device.replay(program)
  t.strictSame([...(await total.data())], [99], 'what is written while recording is there when it runs')
  ids.write(Int32Array.of(1))
  device.replay(program)
  t.strictSame([...(await y.data())], [13, 24])
  ids.write(Int32Array.of(7))
  device.replay(program)
  await t.rejects(y.data(), { code: 'ERR_INVALID_ARGUMENT', message: /token id 7/ }, 'a replay can be refused')
  program.dispose()
  t.strictSame([...(await table.data())], [1, 2, 3, 4])
})

t.test('memory that runs out', { skip }, async (t) => {
  const device = await Device.open(name)
  const elements = 2 ** 30
  const tensors = Array.from({ length: 200 }, () => Tensor.empty(device, [elements]))
  const error = await tensors
    .at(-1)!
    .rows(0, 1)
    .data()
    .then(
      () => t.fail('more memory than there is'),
      (error: QuantuneError) => error,
    )
  t.match(error, { code: 'ERR_OUT_OF_MEMORY', message: /4294967296 bytes of \w+: \d+ bytes are free/ })
  for (const tensor of tensors) tensor.dispose()
  const x = Tensor.from(device, [1, 2])
  device.ops.add(x, x, x, 1)
  t.strictSame([...(await x.data())], [2, 4], 'the device is usable afterwards')
})

t.test('large copies pass through in pieces', { skip }, async (t) => {
  const device = await Device.open(name)
  const values = Float32Array.from({ length: 12_000_000 }, (_, i) => i % 8191)
  const x = Tensor.from(device, values)
  device.ops.add(x, x, x, 1)
  const back = await x.data()
  t.ok(
    back.every((value, i) => value === 2 * values[i]!),
    '48 MB there and back',
  )
})

t.test('devices that do not exist', { skip }, async (t) => {
  await t.rejects(Device.open(`${backend}:99`), { code: 'ERR_DEVICE', message: /there is no GPU 99/ })
  const { devices } = await probe(backend)
  t.ok(devices.length >= 1)
  t.match(await doctor({ backend }), new RegExp(`${backend}:0 +usable +`))
})

t.test('refusals', { skip: skip || (!emulated && 'needs cuda-emulated') }, async (t) => {
  const refusal = async (driver: string, options = process.env.QUANTUNE_EMULATION ?? '') => {
    const before = process.env.QUANTUNE_EMULATION
    Object.assign(process.env, { QUANTUNE_EMULATED_DRIVER: driver, QUANTUNE_EMULATION: options })
    try {
      return await whyRefused(name, { again: true })
    } finally {
      delete process.env.QUANTUNE_EMULATED_DRIVER
      if (before === undefined) delete process.env.QUANTUNE_EMULATION
      else process.env.QUANTUNE_EMULATION = before
    }
  }
  t.match(await refusal('missing'), /there is no NVIDIA driver/)
  t.match(await refusal('old'), /too old: it supports CUDA 11\.4, this build needs/)
  t.match(await refusal('none'), /finds no GPU/)
  t.match(await refusal('mismatch'), /without a restart/)
  t.match(await refusal('crash'), /its driver crashed \(SIGABRT\)/)
  t.match(await refusal('works', 'sm:75'), /compute capability 7\.5, needed is 8\.0/)
  t.equal(await refusal('works'), null)
})
