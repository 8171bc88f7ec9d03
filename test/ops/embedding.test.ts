import t from 'tap'
import { openHarness, round, tolerance } from './harness.js'

const h = await openHarness()
const width = 37
const vocabulary = 9

for (const dtype of ['float32', 'bfloat16'] as const) {
  t.test(`embedding ${dtype}`, async (t) => {
    const ids = [0, 8, 3, 3, 5]
    const index = h.operand(ids, undefined, 'int32')
    for (const stored of ['float32', 'bfloat16', 'float16'] as const) {
      const table = h.random.normal([vocabulary, width], { dtype: stored })
      const y = h.garbage([ids.length, width], dtype)
      h.ops.embedding(y, index.tensor, table.tensor, null, null)
      const expected = ids.flatMap((id) => [...table.values.subarray(id * width, (id + 1) * width)])
      await h.equal(
        t,
        y,
        expected.map((v) => round(v, dtype)),
        `table ${stored}`,
      )
    }
  })

  t.test(`trainable rows beside the table ${dtype}`, async (t) => {
    const table = h.random.normal([vocabulary, width])
    const rows = h.random.normal([3, width])
    const rowOf = h.operand([-1, 2, -1, -1, -1, -1, -1, -1, -1, 0, 1], undefined, 'int32') // ids 9 and 10 are new, 1 is replaced
    const ids = [9, 1, 10, 0, 9]
    const from = [rows, rows, rows, table, rows]
    const at = [0, 2, 1, 0, 0]
    const index = h.operand(ids, undefined, 'int32')
    const y = h.garbage([ids.length, width], dtype)
    h.ops.embedding(y, index.tensor, table.tensor, rows.tensor, rowOf.tensor)
    const expected = at.flatMap((row, i) => [...from[i]!.values.subarray(row * width, (row + 1) * width)])
    await h.equal(
      t,
      y,
      expected.map((v) => round(v, dtype)),
    )

    const dy = h.random.normal([ids.length, width], { dtype })
    const dTable = h.random.normal([vocabulary, width])
    const dRows = h.random.normal([3, width])
    const expectedTable = Float64Array.from(dTable.values)
    const expectedRows = Float64Array.from(dRows.values)
    at.forEach((row, i) => {
      const to = from[i] === rows ? expectedRows : expectedTable
      for (let c = 0; c < width; c++) to[row * width + c]! += dy.values[i * width + c]!
    })
    h.ops.embedding_backward(null, dRows.tensor, dy.tensor, index.tensor, rowOf.tensor)
    await h.close(t, dRows.tensor, expectedRows, tolerance.float32, 'rows alone')
    h.ops.embedding_backward(dTable.tensor, null, dy.tensor, index.tensor, rowOf.tensor)
    await h.close(t, dTable.tensor, expectedTable, tolerance.float32, 'the table alone: replaced ids do not count')
  })

  t.test(`gradient of the table ${dtype}`, async (t) => {
    const ids = Array.from({ length: 200 }, (_, i) => (i * i) % vocabulary)
    const dy = h.random.normal([ids.length, 300], { dtype })
    const dTable = h.zeros([vocabulary, 300])
    const expected = new Float64Array(vocabulary * 300)
    ids.forEach((id, i) => {
      for (let c = 0; c < 300; c++) expected[id * 300 + c]! += dy.values[i * 300 + c]!
    })
    h.ops.embedding_backward(dTable, null, dy.tensor, h.operand(ids, undefined, 'int32').tensor, null)
    await h.close(t, dTable, expected, { absolute: 3e-5, relative: 1e-6 })
  })
}

t.test('refused', async (t) => {
  const table = h.zeros([vocabulary, width])
  for (const id of [-1, vocabulary]) {
    const ids = h.operand([0, id, 0], undefined, 'int32')
    const pattern = new RegExp(`token id ${id} at index 1 .* ${vocabulary} rows`)
    const y = h.empty([3, width])
    await h.rejects(t, y, () => h.ops.embedding(y, ids.tensor, table, null, null), pattern)
    const gradient = h.zeros([vocabulary, width])
    const dy = h.zeros([3, width])
    await h.rejects(t, gradient, () => h.ops.embedding_backward(gradient, null, dy, ids.tensor, null), pattern)
  }
  const y = h.empty([1, width])
  const rowOf = h.operand([7], undefined, 'int32')
  const ids = h.operand([0], undefined, 'int32')
  const rows = h.zeros([2, width])
  await h.rejects(t, y, () => h.ops.embedding(y, ids.tensor, table, rows, rowOf.tensor), /row_of\[0\] is 7/)
  const narrow = h.empty([1, width - 1])
  await h.rejects(t, narrow, () => h.ops.embedding(narrow, ids.tensor, table, null, null), /embedding/)
})
