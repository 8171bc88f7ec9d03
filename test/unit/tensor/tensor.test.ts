import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Device, Tensor, type TensorData } from '../../../lib/tensor/index.js'

const device = await Device.open('cpu')

t.test('what goes in comes out', async (t) => {
  const cases: [TensorData, Parameters<typeof Tensor.from>[3], number[]][] = [
    [[1, 2.5, -3], undefined, [1, 2.5, -3]],
    [Float32Array.of(1, 2.5), undefined, [1, 2.5]],
    [Int32Array.of(1, -(2 ** 31), 2 ** 31 - 1), undefined, [1, -(2 ** 31), 2 ** 31 - 1]],
    [Int8Array.of(-128, 127), undefined, [-128, 127]],
    [Uint8Array.of(0, 255), undefined, [0, 255]],
    [[1, 2.5, -3], 'bfloat16', [1, 2.5, -3]],
    [[1.00390625, 2.7], 'bfloat16', [1, 2.703125]],
    [[1.0009765625, 65504, 2 ** -24], 'float16', [1.0009765625, 65504, 2 ** -24]],
    [Uint16Array.of(0x3f80, 0xc000), 'bfloat16', [1, -2]],
    [Uint16Array.of(0x3c00, 0x0001), 'float16', [1, 2 ** -24]],
    [Int32Array.of(1, 2), 'float32', [1, 2]],
    [[], undefined, []],
  ]
  for (const [data, dtype, expected] of cases) {
    const tensor = Tensor.from(device, data, undefined, dtype)
    t.strictSame([...(await tensor.data())], expected, `${data.constructor.name} as ${tensor.dtype}`)
    tensor.dispose()
  }
  t.type(await Tensor.from(device, [1], [1], 'float16').data(), Float32Array)
  t.type(await Tensor.from(device, Int32Array.of(1)).data(), Int32Array)
})

t.test('shapes', async (t) => {
  const x = Tensor.from(device, [1, 2, 3, 4, 5, 6], [3, 2])
  t.strictSame(x.shape, [3, 2])
  t.equal(x.size, 6)
  t.strictSame(x.view([-1, 3]).shape, [2, 3])
  t.strictSame([...(await x.rows(1, 2).data())], [3, 4, 5, 6])
  t.strictSame([...(await x.rows(2, 1).view([2]).data())], [5, 6])
  t.strictSame([...(await x.rows(3, 0).data())], [])
  t.equal(await Tensor.from(device, [7], []).item(), 7)
  const refused: [() => unknown, RegExp][] = [
    [() => Tensor.from(device, [1, 2], [3]), /2 values do not fill the shape \[3\]/],
    [() => Tensor.empty(device, [1, 2, 3, 4, 5]), /at most 4 dimensions, got 5/],
    [() => Tensor.empty(device, [-1]), /integers >= 0/],
    [() => Tensor.empty(device, [1.5]), /integers >= 0/],
    [() => Tensor.empty(device, [1], 'float64' as 'float32'), /unknown dtype float64/],
    [() => Tensor.empty(device, [1], 'float32', 'fun' as 'other'), /unknown purpose fun/],
    [() => Tensor.empty(device, [1], 'nf4'), /emptyQuantized/],
    [() => Tensor.emptyQuantized(device, [64], { type: 'nf4', blockSize: 32 as 64, doubleQuant: false }), /64 or 128, got 32/],
    [() => x.view([4, 2]), /\[3, 2\] has no shape \[4, 2\]/],
    [() => x.rows(2, 2), /2 from 2 are not inside the first dimension of 3/],
    [() => x.write([1]), /1 values for a tensor of 6/],
    [() => Tensor.from(device, Float32Array.of(1), [1], 'int32'), /float32 data cannot be written into a int32 tensor/],
    [() => Tensor.from(device, Uint16Array.of(1)), /Uint16Array needs a dtype/],
  ]
  for (const [fn, message] of refused) t.throws(fn, { code: 'ERR_INVALID_ARGUMENT', message })
  await t.rejects(x.item(), { message: /6 elements, not 1/ })
})

t.test('views share their buffer, and writing keeps the order of the queue', async (t) => {
  const x = Tensor.zeros(device, [2, 2])
  const row = x.rows(1, 1)
  const data = Float32Array.of(5, 6)
  row.write(data)
  data.fill(0)
  t.strictSame([...(await x.data())], [0, 0, 5, 6], 'the data was copied when it was written')
  device.ops.scale(x, x, null, 2)
  row.write([7, 8])
  t.strictSame([...(await x.data())], [0, 0, 7, 8])
  x.dispose()
  t.strictSame([...(await row.data())], [7, 8], 'a view keeps the buffer alive')
})

t.test('references', async (t) => {
  const x = Tensor.from(device, [1])
  x.retain().dispose()
  t.notOk(x.disposed)
  const reading = x.data()
  x.dispose()
  t.ok(x.disposed)
  t.strictSame([...(await reading)], [1], 'what was asked before arrives')
  x.dispose()
  const disposed = { code: 'ERR_DISPOSED' }
  t.throws(() => x.view([1]), disposed)
  t.throws(() => x.rows(0, 1), disposed)
  t.throws(() => x.write([1]), disposed)
  t.throws(() => x.retain(), disposed)
  t.throws(() => device.ops.fill(x, 1), { ...disposed, message: /fill: out \[1\] is disposed/ })
  await t.rejects(x.data(), disposed)
})

t.test('files', async (t) => {
  const path = join(t.testdir(), 'numbers.bin')
  writeFileSync(path, Buffer.from(Float32Array.of(1, 2, 3, 4).buffer))
  const file = device.openFile(path)
  t.equal(file.size, 16)
  t.strictSame([...(await Tensor.fromFile(device, file, 4, [2], 'float32').data())], [2, 3])
  t.strictSame([...(await Tensor.fromFile(device, file, 6, [1], 'bfloat16').data())], [2])
  t.throws(() => Tensor.fromFile(device, file, 12, [2], 'float32'), { message: /bytes 12 to 20 are not inside .*\(16 bytes\)/ })
  t.throws(() => Tensor.fromFile(device, file, -4, [1], 'float32'), { code: 'ERR_INVALID_ARGUMENT' })
  truncateSync(path, 8)
  await t.rejects(Tensor.fromFile(device, file, 8, [2], 'float32').data(), { message: /cut short/ })
  const last = Tensor.fromFile(device, file, 0, [2], 'float32')
  file.close()
  t.strictSame([...(await last.data())], [1, 2], 'copies queued before it was closed are made')
  t.throws(() => Tensor.fromFile(device, file, 0, [1], 'float32'), { code: 'ERR_DISPOSED' })
  t.throws(() => device.openFile(join(path, 'nowhere')), { code: 'ERR_IO', details: { path: join(path, 'nowhere') } })
  t.throws(() => device.openFile(t.testdirName), { code: 'ERR_IO', message: /not a regular file/ })
})
