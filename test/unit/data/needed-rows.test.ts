import fc from 'fast-check'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { neededRows } from '../../../lib/data/needed-rows.js'

/** What a row sees: tokens and positions, itself last. */
const seenBy = ({ inputIds, positions, end }: Pick<Batch, 'inputIds' | 'positions' | 'end'>, row: number) =>
  Array.from({ length: row + 1 }, (_, j) => j)
    .filter((j) => row < end[j]!)
    .map((j) => `${inputIds[j]}@${positions[j]}`)
    .join()

const samples = fc.array(fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 8 }), {
  minLength: 1,
  maxLength: 6,
})

t.test('what is asked for sees what it saw, and everything that is left is seen', async () => {
  fc.assert(
    fc.property(samples, fc.subarray([0, 1]), fc.infiniteStream(fc.nat()), (lists, notAttended, chance) => {
      const batch = Batch.pack(
        lists.map((inputIds) => ({ inputIds })),
        { notAttended },
      )
      const all = Int32Array.from({ length: batch.numTokens }, (_, row) => row)
      const asked = all.filter(() => chance.next().value! % 3 === 0)
      const { stream, rows } = neededRows(batch, asked)
      const same = asked.every((row, i) => seenBy(batch, row) === seenBy(stream, rows[i]!))
      const useful = stream.inputIds.every((_, j) => rows.some((row) => j <= row && row < stream.end[j]!))
      return same && useful && rows.length === asked.length
    }),
    { numRuns: 500 },
  )
})

t.test('a final token that predicts nothing is left out; a stream without such stays itself', async (t) => {
  const batch = Batch.pack([
    { inputIds: [7, 8, 1, 4], labels: [-100, -100, -100, 4] },
    { inputIds: [7, 8, 2, 5, 6], labels: [-100, -100, -100, 5, 6] },
  ])
  const { stream, rows } = neededRows(batch, Int32Array.from(new Set(batch.targetRows)))
  t.same([...stream.inputIds], [7, 8, 1, 2, 5])
  t.same([...stream.end], [5, 5, 3, 5, 5])
  t.same([...rows], [2, 3, 4])
  const all = batch.inputIds.map((_, row) => row)
  t.equal(neededRows(batch, all).rows, all)
})
