import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { countTargets, microBatches } from '../../../lib/training/micro-batches.js'

type Example = number[]
let collated: Example[][] = []
const collator = {
  collate(examples: readonly Example[]) {
    collated.push([...examples])
    return Batch.pack(examples.map((ids) => ({ inputIds: ids, labels: ids })))
  },
}
t.beforeEach(() => {
  collated = []
})

const context = (n: number) => Array.from({ length: 20 }, (_, i) => n * 100 + i)
const examples = [1, 2, 3].flatMap((n) => [7, 8, 9].map((question) => [...context(n), question, question + 10]))

t.test('by samples', async (t) => {
  const batches = (await microBatches(collator, examples, { batchSize: 4 })) as Batch[]
  t.same(
    batches.map(({ numSamples }) => numSamples),
    [4, 4, 1],
  )
  t.equal(countTargets(batches), 9 * 21)
})

t.test('by tokens, where a shared prefix counts once', async (t) => {
  const batches = (await microBatches(collator, examples, { batchSize: 1, maxTokens: 30 })) as Batch[]
  t.same(
    batches.map(({ numTokens }) => numTokens),
    [26, 26, 26],
  )
  t.equal(countTargets(batches), 9 * 21)
  t.same(collated.slice(1).flat(), examples, 'in order')
})

t.test('an example longer than the limit stands alone; a step that fits is collated once', async (t) => {
  const long = await microBatches(collator, examples, { batchSize: 1, maxTokens: 5 })
  t.equal(long.length, 9)
  collated = []
  t.equal((await microBatches(collator, examples, { batchSize: 1, maxTokens: 100 })).length, 1)
  t.equal(collated.length, 1)
})
