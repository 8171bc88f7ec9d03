import t from 'tap'
import { resolveArguments, type TrainingArguments } from '../../../lib/training/arguments.js'
import { checkDataset, type FeedPosition, openFeed, type TrainingDataset } from '../../../lib/training/feed.js'

const start: FeedPosition = { epoch: 0, position: 0 }
const numbers = Array.from({ length: 10 }, (_, i) => i)

async function take(dataset: TrainingDataset<number>, args: TrainingArguments, steps: number, from = start) {
  const feed = await openFeed(dataset, resolveArguments(args, false), {}, from)
  const taken = []
  for (let i = 0; i < steps; i++) taken.push(await feed.next())
  await feed.close()
  return taken
}

async function* stream() {
  yield* numbers
}

t.test('steps take their samples epoch by epoch; the last of an epoch may be smaller', async (t) => {
  const args: TrainingArguments = {
    perDeviceTrainBatchSize: 2,
    gradientAccumulationSteps: 2,
    trainSamplingStrategy: 'sequential',
  }
  const steps = await take(numbers, args, 4)
  t.same(
    steps.map(({ examples }) => examples),
    [
      [0, 1, 2, 3],
      [4, 5, 6, 7],
      [8, 9],
      [0, 1, 2, 3],
    ],
  )
  t.same(
    steps.map(({ endsEpoch }) => endsEpoch),
    [false, false, true, false],
  )
  t.same(steps[3]!.after, { epoch: 1, position: 4 })
})

t.test('every feed goes on from any position as if it had not stopped', async (t) => {
  const asynchronous = { length: 10, at: async (i: number) => i }
  for (const [dataset, strategy] of [
    [numbers, 'random'],
    [asynchronous, 'random'],
    [asynchronous, 'group_by_length'],
    [numbers, 'group_by_prefix'],
    [stream, 'sequential'],
  ] as const) {
    const args: TrainingArguments = { perDeviceTrainBatchSize: 3, trainSamplingStrategy: strategy, maxSteps: 9, seed: 5 }
    const whole = await take(dataset, args, 9)
    for (let stop = 1; stop < 9; stop++) {
      const rest = await take(dataset, args, 9 - stop, whole[stop - 1]!.after)
      t.same(rest, whole.slice(stop), `${strategy} from step ${stop}`)
    }
    t.same(
      whole
        .slice(0, 4)
        .flatMap(({ examples }) => examples)
        .sort(),
      numbers,
    )
  }
})

t.test('an iterable is opened anew for each epoch, closed at the end, and needs maxSteps', async (t) => {
  let opened = 0
  let closed = 0
  const counted = () => {
    opened++
    const inner = stream()
    const close = () => {
      closed++
      return inner.return(undefined)
    }
    return { [Symbol.asyncIterator]: () => ({ next: () => inner.next(), return: close }) } as unknown as AsyncIterable<number>
  }
  const steps = await take(counted, { perDeviceTrainBatchSize: 5, maxSteps: 5 }, 5)
  t.same(
    steps.map(({ endsEpoch }) => endsEpoch),
    [false, true, false, true, false],
  )
  t.equal(opened, 3)
  t.equal(closed, 1)
  await t.rejects(take(stream, {}, 1), { code: 'ERR_INVALID_ARGUMENT', message: /maxSteps/ })
  await t.rejects(take(stream, { maxSteps: 1, trainSamplingStrategy: 'random' }, 1), {
    message: /an iterable is read in order/,
  })
  await t.rejects(
    take(async function* () {}, { maxSteps: 1 }, 1),
    { message: /gave none/ },
  )
})

t.test('what is no data set is refused', async (t) => {
  for (const value of [undefined, null, 3, {}, { length: 2 }, { at() {} }]) {
    t.throws(() => checkDataset(value, 'trainDataset'), {
      code: 'ERR_INVALID_ARGUMENT',
      message: /trainDataset: expected an array/,
    })
  }
  t.throws(() => checkDataset([], 'evalDataset'), { message: /evalDataset: expected at least one sample/ })
})

t.test('group_by_prefix keeps chats with a common context together', async (t) => {
  const chats = Array.from({ length: 12 }, (_, i) => ({
    messages: [
      { role: 'system', content: 'Answer from the context.' },
      { role: 'user', content: `${`Context ${i % 3}. `.repeat(20)}Question ${i}?` },
    ],
  }))
  const args = resolveArguments({ perDeviceTrainBatchSize: 4, trainSamplingStrategy: 'group_by_prefix' }, false)
  for (const grouping of [{}, { prefixKey: (_: unknown, index: number) => String(index % 3) }]) {
    const feed = await openFeed(chats, args, grouping, start)
    for (let step = 0; step < 6; step++) {
      const { examples } = await feed.next()
      t.equal(new Set(examples.map((chat) => chats.indexOf(chat) % 3)).size, 1)
    }
  }
})
