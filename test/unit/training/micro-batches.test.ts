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
  const scattered = [0, 3, 6, 1, 4, 7, 2, 5, 8].map((i) => examples[i]!)
  const gathered = (await microBatches(collator, scattered, { batchSize: 1, maxTokens: 30 })) as Batch[]
  t.same(
    gathered.map(({ numTokens }) => numTokens),
    [26, 26, 26],
    'those with a common beginning come together',
  )
})

t.test('the collator is told what is dropped', async (t) => {
  const told: unknown[] = []
  const telling = {
    collate(some: readonly Example[], context?: object) {
      told.push(context)
      return collator.collate(some)
    },
  }
  await microBatches(telling, examples, { batchSize: 5, dropout: 0.25 })
  await microBatches(telling, examples, { batchSize: 5 })
  await microBatches(telling, examples, { batchSize: 1, maxTokens: 60, dropout: 0.25 })
  const [dropping, keeping] = [{ dropout: 0.25 }, { dropout: 0 }]
  t.same(told, [dropping, dropping, keeping, keeping, dropping, dropping, dropping])
})

t.test('an example longer than the limit stands alone; a step that fits is collated once', async (t) => {
  const long = await microBatches(collator, examples, { batchSize: 1, maxTokens: 5 })
  t.equal(long.length, 9)
  collated = []
  t.equal((await microBatches(collator, examples, { batchSize: 1, maxTokens: 100 })).length, 1)
  t.equal(collated.length, 1)
})
