import fc from 'fast-check'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { splitPrefixTree } from '../../../lib/data/prefix-tree-split.js'

const samples = fc.array(fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 9 }), {
  minLength: 1,
  maxLength: 8,
})
const tokensOf = (rows: readonly Int32Array[], part: readonly number[]) => new Set(part.flatMap((i) => [...rows[i]!])).size
const treeOf = (lists: readonly number[][]) => Batch.pack(lists.map((inputIds) => ({ inputIds })))

/** Every way to cut a list into runs. */
function* cuts(list: readonly number[]): Generator<number[][]> {
  if (list.length === 0) yield []
  for (let n = 1; n <= list.length; n++) for (const rest of cuts(list.slice(n))) yield [list.slice(0, n), ...rest]
}

t.test('every sample is in one part, within the budget, and no other way to cut the tree has fewer tokens', async () => {
  fc.assert(
    fc.property(samples, fc.integer({ min: 1, max: 30 }), (lists, budget) => {
      const { sampleRows } = treeOf(lists)
      const parts = splitPrefixTree(sampleRows, budget)
      const all = parts.flat().sort((a, b) => a - b)
      if (JSON.stringify(all) !== JSON.stringify(lists.map((_, i) => i))) return false
      if (!parts.every((part) => part.length === 1 || tokensOf(sampleRows, part) <= budget)) return false
      const costOf = (some: number[][]) => some.reduce((sum, part) => sum + tokensOf(sampleRows, part) + 16, 0)
      // Texts in alphabetical order are the tree from left to right.
      const order = lists.map((_, i) => i).sort((a, b) => (lists[a]!.join() < lists[b]!.join() ? -1 : 1))
      for (const cut of cuts(order)) {
        const fits = cut.every((part) => part.length === 1 || tokensOf(sampleRows, part) <= budget)
        // Batch.pack has the children of a node in the order of the samples: as good a cut may be another one then.
        if (fits && isDepthFirst(sampleRows, order) && costOf(cut) < costOf(parts)) return false
      }
      return true
    }),
    { numRuns: 200 },
  )
})

/** Whether the samples in this order lie in the stream from left to right. */
function isDepthFirst(rows: readonly Int32Array[], order: readonly number[]): boolean {
  return order.every((sample, i) => i === 0 || rows[order[i - 1]!]!.at(-1)! <= rows[sample]!.at(-1)!)
}

t.test('the questions on a context stay together, in whatever order they come', async (t) => {
  const instruction = Array.from({ length: 20 }, (_, i) => i)
  const context = (n: number) => Array.from({ length: 30 }, (_, i) => 100 * n + i)
  const lists = [1, 2, 3, 4].flatMap((n) => [7, 8, 9].map((question) => [...instruction, ...context(n), question, 10]))
  const shuffled = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11].map((i) => lists[i]!)
  const { sampleRows, numTokens } = treeOf(shuffled)
  // A context with the instruction has 56 tokens, two have 92.
  const parts = splitPrefixTree(sampleRows, 60)
  t.same(parts, [
    [0, 4, 8],
    [1, 5, 9],
    [2, 6, 10],
    [3, 7, 11],
  ])
  t.equal(
    parts.reduce((sum, part) => sum + tokensOf(sampleRows, part), 0),
    numTokens + 3 * instruction.length,
    'the instruction is computed once in each part, nothing else twice',
  )
  const pairs = splitPrefixTree(sampleRows, 100)
  t.same(pairs, [
    [0, 1, 4, 5, 8, 9],
    [2, 3, 6, 7, 10, 11],
  ])
})

t.test('without shared beginnings, and with samples longer than the budget', async (t) => {
  const rows = Batch.pack([{ inputIds: [1, 1, 1] }, { inputIds: [1, 1, 1] }, { inputIds: [1, 1, 1] }], { sharePrefixes: false })
  t.same(splitPrefixTree(rows.sampleRows, 6), [[0, 1], [2]])
  t.same(splitPrefixTree(rows.sampleRows, 2), [[0], [1], [2]])
  t.same(splitPrefixTree(rows.sampleRows, 9), [[0, 1, 2]])
})
