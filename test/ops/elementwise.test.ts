import t from 'tap'
import type { DType } from '../../lib/tensor/index.js'
import { openHarness, round, tolerance } from './harness.js'

const h = await openHarness()
const activations = ['float32', 'bfloat16'] as const
const plain: DType[] = ['float32', 'bfloat16', 'float16', 'int32', 'int8', 'uint8']

t.test('fill and fill_list', async (t) => {
  for (const dtype of plain) {
    const out = h.garbage([7, 13], dtype)
    h.ops.fill(out, 3.25)
    const value = dtype.includes('int') ? 3 : 3.25
    await h.equal(t, out, new Array(91).fill(value), dtype)
  }
  const list = plain.map((dtype, i) => h.garbage([i * 5000 + 1], dtype)) // small and large tensors in one list
  h.ops.fill_list(list, 2)
  for (const tensor of list) await h.equal(t, tensor, new Array(tensor.size).fill(2), tensor.dtype)
  const integers = h.garbage([2], 'uint8')
  h.ops.fill(integers, 1e9)
  await h.equal(t, integers, [255, 255], 'integers are clamped')
})

t.test('copy converts between all dtypes', async (t) => {
  const values = [0, 1, 2.5, 100.75, 127, ...Array.from({ length: 40 }, (_, i) => i * 1.3)]
  for (const from of plain) {
    const whole = from.includes('int')
    const x = h.operand(whole ? values.map(Math.trunc) : values.map((v) => round(v, from)), undefined, from)
    for (const to of plain) {
      const out = h.garbage([values.length], to)
      h.ops.copy(out, x.tensor)
      const expected = Array.from(x.values, (v) => (to.includes('int') ? Math.trunc(v) : round(v, to)))
      await h.equal(t, out, expected, `${from} to ${to}`)
    }
  }
  const x = h.operand([300, -300, Number.NaN, 1e20])
  const bytes = h.garbage([4], 'int8')
  h.ops.copy(bytes, x.tensor)
  await h.equal(t, bytes, [127, -128, 0, 127], 'integers are clamped, NaN becomes 0')
  const wrong = h.empty([3])
  await h.rejects(t, wrong, () => h.ops.copy(wrong, x.tensor), /copy/)
})

for (const dtype of activations) {
  t.test(`add and scale ${dtype}`, async (t) => {
    for (const size of [1, 15, 16, 1000, 40001]) {
      const a = h.random.normal([size], { dtype })
      const b = h.random.normal([size], { dtype })
      const out = h.garbage([size], dtype)
      h.ops.add(out, a.tensor, b.tensor, -0.5)
      const expected = a.values.map((x, i) => x - 0.5 * b.values[i]!)
      await h.close(t, out, expected, tolerance[dtype], `add ${size}`)
      h.ops.add(a.tensor, a.tensor, b.tensor, -0.5)
      await h.close(t, a.tensor, expected, tolerance[dtype], `add in place ${size}`)
      const by = h.operand([3])
      h.ops.scale(out, b.tensor, by.tensor, 0.25)
      await h.close(
        t,
        out,
        b.values.map((x) => x * 0.75),
        tolerance[dtype],
        `scale ${size}`,
      )
      h.ops.scale(b.tensor, b.tensor, null, -2)
      await h.close(
        t,
        b.tensor,
        b.values.map((x) => x * -2),
        tolerance[dtype],
        `scale in place ${size}`,
      )
    }
    const short = h.empty([3], dtype)
    const x = h.random.normal([4], { dtype })
    await h.rejects(t, short, () => h.ops.add(short, x.tensor, x.tensor, 1), /add/)
  })

  t.test(`sum ${dtype}`, async (t) => {
    for (const size of [0, 1, 77, 50_003]) {
      const x = h.random.normal([size], { dtype, mean: 0.5 })
      const out = h.operand([10])
      const total = x.values.reduce((sum, v) => sum + v, 0)
      h.ops.sum(out.tensor, x.tensor, 0.5, 1)
      await h.close(t, out.tensor, [10 + 0.5 * total], { absolute: 1e-5, relative: 1e-5 }, `accumulated ${size}`)
      h.ops.sum(out.tensor, x.tensor, 2, 0)
      await h.close(t, out.tensor, [2 * total], { absolute: 1e-5, relative: 1e-5 }, `overwritten ${size}`)
    }
  })

  t.test(`scatter_add_rows ${dtype}`, async (t) => {
    const width = 147
    const rows = [4, 0, 4, 2, 4, 0]
    const x = h.random.normal([rows.length, width], { dtype })
    const out = h.random.normal([5, width], { dtype })
    const expected = Float64Array.from(out.values)
    rows.forEach((row, r) => {
      for (let i = 0; i < width; i++) {
        const at = row * width + i
        expected[at] = round(expected[at]! + x.values[r * width + i]!, dtype) // each addition is rounded as it is stored
      }
    })
    h.ops.scatter_add_rows(out.tensor, x.tensor, h.operand(rows, undefined, 'int32').tensor)
    await h.close(t, out.tensor, expected, tolerance[dtype])
    const bad = h.operand([0, 0, 0, 5, 0, 0], undefined, 'int32')
    await h.rejects(t, out.tensor, () => h.ops.scatter_add_rows(out.tensor, x.tensor, bad.tensor), /rows\[3\] is 5/)
  })
}

t.test('gather_rows', async (t) => {
  const rows = [3, 3, 0, 1]
  const index = h.operand(rows, undefined, 'int32')
  for (const dtype of ['float32', 'bfloat16', 'float16', 'int32'] as const) {
    const x = dtype === 'int32' ? h.random.integers([4, 3, 7], -9, 9) : h.random.normal([4, 3, 7], { dtype })
    const out = h.garbage([4, 3, 7], dtype)
    h.ops.gather_rows(out, x.tensor, index.tensor)
    await h.equal(
      t,
      out,
      rows.flatMap((row) => [...x.values.subarray(row * 21, row * 21 + 21)]),
      dtype,
    )
  }
  const none = h.empty([0, 5])
  h.ops.gather_rows(none, h.empty([2, 5]), h.empty([0], 'int32'))
  await h.equal(t, none, [], 'no rows')
  for (const row of [-1, 4]) {
    const out = h.empty([1, 2])
    const bad = h.operand([row], undefined, 'int32')
    const x = h.zeros([4, 2])
    await h.rejects(t, out, () => h.ops.gather_rows(out, x, bad.tensor), new RegExp(`rows\\[0\\] is ${row}`))
  }
})

t.test('append_column and increment', async (t) => {
  const matrix = h.operand([1, 2, 3, 4, 5, 6], [2, 3], 'int32')
  const values = h.operand([70, 80], undefined, 'int32')
  const index = h.operand([1], undefined, 'int32')
  h.ops.append_column(matrix.tensor, values.tensor, index.tensor)
  h.ops.increment(index.tensor, 1)
  h.ops.append_column(matrix.tensor, values.tensor, index.tensor)
  await h.equal(t, matrix.tensor, [1, 70, 70, 4, 80, 80])
  h.ops.increment(index.tensor, 1)
  await h.rejects(t, matrix.tensor, () => h.ops.append_column(matrix.tensor, values.tensor, index.tensor), /index\[0\] is 3/)
})

t.test('append_column, a column of each row', async (t) => {
  const matrix = h.operand([1, 2, 3, 4, 5, 6], [2, 3], 'int32')
  const [values, index] = [h.operand([7, 8], [2], 'int32'), h.operand([2, 0], [2], 'int32')]
  h.ops.append_column(matrix.tensor, values.tensor, index.tensor)
  await h.equal(t, matrix.tensor, [1, 2, 7, 8, 5, 6])
  const outside = h.operand([2, -1], [2], 'int32').tensor
  await h.rejects(t, matrix.tensor, () => h.ops.append_column(matrix.tensor, values.tensor, outside), /index\[1\] is -1/)
})
