import fc from 'fast-check'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { planGroups } from '../../../lib/generation/plan.js'

const prompts = fc.array(
  fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 8 }).map((ids) => Int32Array.from(ids)),
  { minLength: 1, maxLength: 20 },
)
const treeTokens = (list: Int32Array[]) => Batch.pack(list.map((inputIds) => ({ inputIds }))).numTokens

t.test('every prompt is planned once, within the limits', async () => {
  fc.assert(
    fc.property(prompts, fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 30 }), (list, rowsPerPrompt, budget) => {
      const limits = { rows: 6, promptTokens: 2 * budget, prefillTokens: budget }
      const groups = planGroups(list, rowsPerPrompt, limits)
      const planned = groups.flatMap((group) => group.chunks.flat()).sort((a, b) => a - b)
      const once = planned.length === list.length && planned.every((index, i) => index === i)
      const small = groups.every(
        ({ chunks }) =>
          (chunks.flat().length * rowsPerPrompt <= limits.rows || chunks.flat().length === 1) &&
          chunks.every((chunk) => chunk.length === 1 || treeTokens(chunk.map((i) => list[i]!)) <= budget),
      )
      return once && small && groups.every(({ chunks }) => chunks.every((chunk) => chunk.length > 0))
    }),
  )
})

t.test('prompts with a common beginning come together', async (t) => {
  const list = [
    [1, 1, 1, 5],
    [2, 2, 2, 6],
    [1, 1, 1, 7],
    [2, 2, 2, 8],
  ].map((ids) => Int32Array.from(ids))
  const [group, ...more] = planGroups(list, 1, { rows: 10, promptTokens: 100, prefillTokens: 5 })
  t.same(group!.chunks, [
    [0, 2],
    [1, 3],
  ])
  t.same(more, [])
})
