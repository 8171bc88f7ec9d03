import t from 'tap'
import { openHarness } from './harness.js'
import { denseTypes, matrix, product, sumTolerance, weight, weightTypes } from './matrices.js'

const h = await openHarness()

/** Small and odd, one row, one column, several tiles of rows, of columns and of k; multiples of 64 for the 4-bit paths. */
const sizes = [
  [1, 1, 1],
  [1, 70, 64],
  [3, 5, 7],
  [5, 33, 130],
  [13, 1, 40],
  [2, 130, 192],
  [70, 9, 128],
  [40, 47, 66],
  [19, 64, 900],
  [530, 35, 20],
] as const

for (const [m, n, k] of sizes) {
  t.test(`${m} x ${k} times ${k} x ${n}`, async (t) => {
    for (const type of weightTypes) {
      for (const [transposeA, transposeB] of [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
      ] as const) {
        const blockSize = (m + n) % 2 ? 128 : 64
        const a = h.random.normal(transposeA ? [k, m] : [m, k], { dtype: denseTypes[(m + transposeB) % 3]! })
        const b = await weight(h, transposeB ? [n, k] : [k, n], type, { blockSize, doubleQuant: transposeA === 1 })
        const start = h.random.normal([m, n])
        const [left, right] = [matrix(a, transposeA === 1), matrix(b, transposeB === 1)]
        const label = `${type}${transposeA ? ', a transposed' : ''}${transposeB ? ', b transposed' : ''}`
        const c = h.garbage([m, n])
        h.ops.matmul(c, a.tensor, b.tensor, transposeA, transposeB, 1, 0)
        await h.close(t, c, product([m, n, k], left, right), sumTolerance(k, 'float32', a.tensor.dtype), label)
        h.ops.matmul(start.tensor, a.tensor, b.tensor, transposeA, transposeB, -0.5, 1)
        const expected = product([m, n, k], left, right, start.values, -0.5)
        await h.close(t, start.tensor, expected, sumTolerance(k, 'float32', a.tensor.dtype), `${label}, accumulated`)
      }
    }
  })
}

t.test('bfloat16, tiles of each form and k in parts', async (t) => {
  for (const [m, n, k] of [
    [70, 400, 72],
    [70, 70, 704],
    [40, 130, 192],
    [130, 20, 640],
    [11, 40, 328],
  ] as const) {
    for (const [transposeA, transposeB] of [
      [0, 0],
      [0, 1],
      [1, 0],
      [1, 1],
    ] as const) {
      const a = h.random.normal(transposeA ? [k, m] : [m, k], { dtype: 'bfloat16' })
      const b = h.random.normal(transposeB ? [n, k] : [k, n], { dtype: 'bfloat16' })
      const c = h.garbage([m, n])
      h.ops.matmul(c, a.tensor, b.tensor, transposeA, transposeB, 1, 0)
      const expected = product([m, n, k], matrix(a, transposeA === 1), matrix(b, transposeB === 1))
      await h.close(
        t,
        c,
        expected,
        sumTolerance(k, 'float32', 'bfloat16'),
        `[${m}, ${n}] over ${k}${transposeA ? ', a transposed' : ''}${transposeB ? ', b transposed' : ''}`,
      )
    }
  }
})

t.test('results in 16 bits are rounded once', async (t) => {
  for (const dtype of ['bfloat16', 'float16'] as const) {
    for (const [m, n, k] of [
      [2, 9, 70],
      [21, 37, 1000],
    ] as const) {
      const [a, b] = [h.random.normal([m, k], { dtype }), h.random.normal([n, k], { dtype })]
      const c = h.random.normal([m, n], { dtype })
      const expected = product([m, n, k], matrix(a), matrix(b, true), c.values)
      h.ops.matmul(c.tensor, a.tensor, b.tensor, 0, 1, 1, 1)
      await h.close(t, c.tensor, expected, sumTolerance(k, dtype, dtype), `${dtype} [${m}, ${n}]`)
    }
  }
})

t.test('a may be the 4-bit operand', async (t) => {
  const a = await weight(h, [37, 66], 'nf4')
  const b = h.random.normal([66, 5])
  const c = h.garbage([37, 5])
  h.ops.matmul(c, a.tensor, b.tensor, 0, 0, 1, 0)
  await h.close(t, c, product([37, 5, 66], matrix(a), matrix(b)), sumTolerance(66))
})

t.test('the same operands give the same bits, also beside other rows', async (t) => {
  const [x, w] = [h.random.normal([40, 200]), h.random.normal([100, 200])]
  const [first, second, rows] = [h.garbage([40, 100]), h.garbage([40, 100]), h.garbage([13, 100])]
  h.ops.matmul(first, x.tensor, w.tensor, 0, 1, 1, 0)
  h.ops.matmul(second, x.tensor, w.tensor, 0, 1, 1, 0)
  h.ops.matmul(rows, x.tensor.rows(20, 13), w.tensor, 0, 1, 1, 0)
  const bits = await h.read(first)
  await h.equal(t, second, bits, 'repeated')
  await h.equal(t, rows, bits.subarray(20 * 100, 33 * 100), 'thirteen of the forty rows')
})

t.test('nothing to sum, nothing to write', async (t) => {
  const c = h.garbage([3, 2])
  h.ops.matmul(c, h.empty([3, 0]), h.empty([0, 2]), 0, 0, 1, 0)
  await h.equal(t, c, [0, 0, 0, 0, 0, 0], 'a sum over no elements is 0')
  const none = h.empty([0, 2])
  h.ops.matmul(none, h.empty([0, 3]), h.random.normal([3, 2]).tensor, 0, 0, 1, 0)
  await h.equal(t, none, [], 'no rows')
})

t.test('not a number stays one', async (t) => {
  const a = h.operand([1, Number.NaN, 3, 4], [2, 2])
  const c = h.garbage([2, 2])
  h.ops.matmul(c, a.tensor, h.operand([1, 0, 0, 1], [2, 2]).tensor, 0, 0, 1, 0)
  await h.equal(t, c, [Number.NaN, Number.NaN, 3, 4])
})

t.test('shapes that do not fit are refused', async (t) => {
  const [a, b] = [h.empty([2, 3]), h.empty([4, 5])]
  const c = h.empty([2, 5])
  await h.rejects(t, c, () => h.ops.matmul(c, a, b, 0, 0, 1, 0), /matmul.*inner dimension/)
  const d = h.empty([2, 4])
  await h.rejects(t, d, () => h.ops.matmul(d, a, h.empty([3, 5]), 0, 0, 1, 0), /matmul.*\[2, 4\]/)
})
