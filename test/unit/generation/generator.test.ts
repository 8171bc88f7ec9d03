import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { type Generation, type GenerationConfig, Generator } from '../../../lib/generation/index.js'
import { Model } from '../../../lib/model/model.js'
import { AdamW } from '../../../lib/training/optimizer.js'
import { GOLDENS } from '../../support/network.js'

const model = await Model.fromPretrained(join(GOLDENS, 'models', 'stories260k'), { device: 'cpu', dtype: 'float32' })
const generator = new Generator(model)
// What the model makes at its first use stays.
await generator.generate('Once', { maxNewTokens: 2 })
t.teardown(() => model.dispose())

/** 426 is the full stop: stories then end at different lengths. */
const FULL_STOP = 426
const PROMPTS = [
  'Once upon a time',
  'Once upon a time, there was a big',
  'Lily and Tom',
  'The big dog',
  'Once',
  'Once upon a time, there was a little girl who had a red ball and a blue',
]

async function bytesInUse(): Promise<number> {
  await model.device.settled()
  const { current } = model.memoryUsage()
  return current.total
}

/** Generates for all prompts together and one by one, and compares. */
async function sameAlone(t: Test, options: GenerationConfig): Promise<Generation[]> {
  const before = await bytesInUse()
  const together = await generator.generate(PROMPTS, options)
  for (const [i, prompt] of PROMPTS.entries()) {
    const alone = await generator.generate(prompt, options)
    t.same(together[i]!.tokenIds, alone.tokenIds, prompt)
    t.equal(together[i]!.text, alone.text)
    t.equal(together[i]!.finishReason, alone.finishReason)
    const scores = [together[i]!, ...(together[i]!.alternatives ?? [])].map(({ score }) => score ?? 0)
    const others = [alone, ...(alone.alternatives ?? [])].map(({ score }) => score ?? 0)
    t.ok(scores.every((score, s) => Math.abs(score - others[s]!) < 1e-4))
  }
  t.equal(await bytesInUse(), before, 'nothing is left over')
  return together
}

t.test('a batch of different lengths gives what each prompt gives alone', async (t) => {
  const greedy = await sameAlone(t, { maxNewTokens: 40 })
  t.match(greedy[0]!.text, /^, there was a little girl named Lily\./)
  t.ok(greedy.every(({ tokenIds, finishReason }) => tokenIds.length === 40 && finishReason === 'length'))
  const sentences = await sameAlone(t, { maxNewTokens: 40, eosTokenId: FULL_STOP })
  t.ok(sentences.some(({ finishReason }) => finishReason === 'stop'))
  t.ok(sentences.every(({ tokenIds, finishReason }) => (finishReason === 'stop') === (tokenIds.at(-1) === FULL_STOP)))
  await sameAlone(t, { maxNewTokens: 24, repetitionPenalty: 1.3, noRepeatNgramSize: 3 })
  await sameAlone(t, { maxNewTokens: 24, numBeams: 3, numReturnSequences: 2, eosTokenId: FULL_STOP })
  await sameAlone(t, { maxNewTokens: 20, numBeams: 2, noRepeatNgramSize: 2 })
})

t.test('sampling repeats by seed, alone and in a batch', async (t) => {
  const options = { doSample: true, temperature: 0.9, topK: 20, maxNewTokens: 30, numReturnSequences: 3, seed: 7 }
  const first = await sameAlone(t, options)
  for (const { score, alternatives } of first) {
    t.equal(alternatives!.length, 2)
    t.ok(score! >= alternatives![0]!.score! && alternatives![0]!.score! >= alternatives![1]!.score!)
  }
  t.equal(new Set(first.flatMap((g) => [g, ...g.alternatives!]).map(({ text }) => text)).size, 3 * PROMPTS.length)
  const other = await generator.generate(PROMPTS[0]!, { ...options, seed: 8 })
  t.not(other.text, first[0]!.text)
  const almostGreedy = await generator.generate(PROMPTS[0]!, { doSample: true, topK: 1, maxNewTokens: 10, seed: 1 })
  t.match(almostGreedy.text, /^, there was/)
})

t.test('many prompts are divided into groups and come back in order', async (t) => {
  const prompts = Array.from({ length: 150 }, (_, i) => PROMPTS[i % PROMPTS.length]!)
  const results = await generator.generate(prompts, { maxNewTokens: 6 })
  for (const [i, { text }] of results.entries()) t.equal(text, results[i % PROMPTS.length]!.text)
  t.equal(new Set(results.map(({ text }) => text)).size > 3, true)
})

t.test('stop strings, forced starts, suppressed tokens, a least length', async (t) => {
  const stopped = await generator.generate(PROMPTS[0]!, { stopStrings: ['park.', 'Lily'], maxNewTokens: 60 })
  t.equal(stopped.text, ', there was a little girl named Lily')
  t.equal(stopped.finishReason, 'stop')
  const beams = await generator.generate(PROMPTS[0]!, {
    stopStrings: ['Lily'],
    maxNewTokens: 60,
    numBeams: 4,
    earlyStopping: true,
  })
  t.match(beams.text, /Lily$/)
  const forced = await generator.generate(PROMPTS[0]!, { forcedPrefix: ', there was a dog', maxNewTokens: 8 })
  t.match(forced.text, /^, there was a dog\b/)
  t.equal(forced.tokenIds.length, 8)
  const plain = await generator.generate(`${PROMPTS[0]!}, there was a dog`, { maxNewTokens: 8 })
  t.equal(forced.text, `, there was a dog${plain.text}`)
  const never = await generator.generate(PROMPTS[0]!, { suppressTokens: [FULL_STOP, 432], maxNewTokens: 40 })
  t.notOk(never.tokenIds.some((id) => id === FULL_STOP || id === 432))
  const long = await generator.generate(PROMPTS[0]!, { eosTokenId: FULL_STOP, minNewTokens: 20, maxNewTokens: 60 })
  t.ok(long.tokenIds.length > 20 && long.tokenIds.indexOf(FULL_STOP) === long.tokenIds.length - 1)
  const beamsLong = await generator.generate(PROMPTS[0]!, {
    eosTokenId: FULL_STOP,
    minNewTokens: 20,
    maxNewTokens: 60,
    numBeams: 2,
  })
  t.ok(beamsLong.tokenIds.length > 20)
})

t.test('an answer ends where the context does', async (t) => {
  const inputIds = new Array<number>(500).fill(FULL_STOP)
  const { tokenIds, finishReason } = await generator.generate({ inputIds }, { eosTokenId: [] })
  t.equal(tokenIds.length, 12)
  t.equal(finishReason, 'length')
})

t.test('a stream gives the same text piece by piece', async (t) => {
  const before = await bytesInUse()
  const options = { maxNewTokens: 30, forcedPrefix: ', there' }
  const expected = await generator.generate(PROMPTS[0]!, options)
  let text = ''
  const tokenIds: number[] = []
  for await (const piece of generator.stream(PROMPTS[0]!, options)) {
    text += piece.text
    tokenIds.push(piece.tokenId)
  }
  t.equal(text, expected.text)
  t.same(tokenIds, expected.tokenIds)
  let count = 0
  for await (const _ of generator.stream(PROMPTS[0]!, { maxNewTokens: 400 })) if (++count === 3) break
  t.equal(count, 3)
  t.equal(await bytesInUse(), before, 'leaving the loop frees everything')
  t.throws(() => generator.stream(PROMPTS[0]!, { numBeams: 2 }), { code: 'ERR_INVALID_ARGUMENT' })
})

t.test('scores are log-probabilities, whatever is scored beside them', async (t) => {
  const before = await bytesInUse()
  // Without a length penalty a beam's score is the log-probability of its tokens.
  const beam = await generator.generate(PROMPTS[0]!, { numBeams: 3, maxNewTokens: 12, lengthPenalty: 0, eosTokenId: [] })
  const continuations = [beam.text, ', there was a dog', ' the', '.']
  const scores = await generator.score(PROMPTS[0]!, continuations)
  t.same(scores[0]!.tokenIds, beam.tokenIds)
  t.ok(Math.abs(scores[0]!.logProb - beam.score!) < 1e-3)
  t.ok(scores.every((s) => Math.abs(s.tokenLogProbs.reduce((a, b) => a + b, 0) - s.logProb) < 1e-6))
  const batch = await generator.score([PROMPTS[2]!, PROMPTS[0]!], [[' went', ' are'], continuations])
  for (const [i, score] of batch[1]!.entries()) t.ok(Math.abs(score.logProb - scores[i]!.logProb) < 1e-4)
  t.equal(batch[0]!.length, 2)
  t.equal(await bytesInUse(), before)
  await t.rejects(generator.score(PROMPTS[0]!, ['']), { code: 'ERR_INVALID_ARGUMENT' })
  await t.rejects(generator.score(PROMPTS, [['a']]), { code: 'ERR_INVALID_ARGUMENT' })
})

t.test('bad prompts get clear errors', async (t) => {
  const refused = (prompt: unknown, code: string, message: RegExp) =>
    t.rejects(generator.generate(prompt as string), { code, message })
  await refused({ inputIds: [] }, 'ERR_INVALID_ARGUMENT', /empty/)
  await refused([], 'ERR_INVALID_ARGUMENT', /no prompts/)
  await refused({ inputIds: [1, 512] }, 'ERR_INVALID_ARGUMENT', /token 1 is 512/)
  await refused({ inputIds: [-1] }, 'ERR_INVALID_ARGUMENT', /-1/)
  await refused({ inputIds: [1.5] }, 'ERR_INVALID_ARGUMENT', /1\.5/)
  await refused({ inputIds: new Array(512).fill(5) }, 'ERR_CONTEXT_LENGTH', /512/)
  await refused({ text: 'x' }, 'ERR_INVALID_ARGUMENT', /prompt must be/)
  await refused({ messages: [{ role: 'user', content: 'x' }] }, 'ERR_INVALID_ARGUMENT', /chat template/)
  await t.rejects(generator.generate('x', { continueFinalMessage: true }), { code: 'ERR_INVALID_ARGUMENT' })
  await t.rejects(generator.generate('x', { numBeams: 300 }), { code: 'ERR_INVALID_ARGUMENT', message: /512 tokens/ })
  await t.rejects(generator.generate('x', { adapter: 'missing' }), { code: 'ERR_INVALID_ARGUMENT' })
})

t.test('an abort rejects with its reason between two tokens', async (t) => {
  const before = await bytesInUse()
  const reason = new Error('enough')
  await t.rejects(generator.generate('x', { signal: AbortSignal.abort(reason) }), reason)
  for (const options of [{}, { numBeams: 4 }]) {
    const controller = new AbortController()
    const running = generator.generate(PROMPTS, { ...options, maxNewTokens: 400, eosTokenId: [], signal: controller.signal })
    setTimeout(() => controller.abort(reason), 20)
    await t.rejects(running, reason)
  }
  t.equal(await bytesInUse(), before)
})

t.test('calls overlap, each with the adapter that was chosen when it was called', async (t) => {
  model.addAdapter({ type: 'lora', r: 4, loraAlpha: 64, targetModules: 'all-linear', initLoraWeights: false, seed: 3 }, 'odd')
  const options = { maxNewTokens: 16 }
  model.setAdapter(null)
  const base = await generator.generate(PROMPTS[0]!, options)
  const odd = await generator.generate(PROMPTS[0]!, { ...options, adapter: 'odd' })
  t.not(odd.text, base.text)
  const running = [generator.generate(PROMPTS[0]!, options)]
  model.setAdapter('odd')
  running.push(generator.generate(PROMPTS[0]!, options), generator.generate(PROMPTS[0]!, { ...options, adapter: null }))
  const results = await Promise.all(running)
  t.same(
    results.map(({ text }) => text),
    [base.text, odd.text, base.text],
  )
  t.equal((await model.withAdapter(null).generate(PROMPTS[0]!, options)).text, base.text)
  model.setAdapter(null)
})

t.test('so do the short forms on the model', async (t) => {
  const options = { maxNewTokens: 8 }
  const textOf = async (stream: ReturnType<Model['stream']>) => {
    let all = ''
    for await (const { text } of stream) all += text
    return all
  }
  const call = (on: Model) => ({
    text: on.generate(PROMPTS[0]!, options),
    stream: on.stream(PROMPTS[0]!, options),
    score: on.score(PROMPTS[0]!, [' there']),
  })
  const read = async ({ text, stream, score }: ReturnType<typeof call>) => ({
    text: (await text).text,
    streamed: await textOf(stream),
    score: (await score)[0]!.logProb,
  })
  const base = await read(call(model.withAdapter(null)))
  const odd = await read(call(model.withAdapter('odd')))
  t.notSame(odd, base)
  model.setAdapter('odd')
  const early = call(model)
  model.setAdapter(null)
  t.same(await read(early), odd)
  t.same(await read(call(model)), base)

  const running = model.generate(PROMPTS[0]!, options)
  const late = model.stream(PROMPTS[0]!, options)
  const merged = model.mergeAdapter('odd')
  t.equal((await running).text, base.text, 'merging waits')
  await merged
  await t.rejects(late.next(), { code: 'ERR_INVALID_ARGUMENT', message: /merged/ }, 'the bare base is not there any more')
  await model.unmergeAdapter('odd')
})

t.test('generation runs beside a training on the same model', async (t) => {
  const inputIds = model.tokenizer.encode('The big dog ran to the park and saw a red ball.')
  const batch = Batch.pack([{ inputIds, labels: inputIds }])
  const train = async (name: string, beside: () => Promise<unknown>) => {
    model.addAdapter({ type: 'lora', r: 4, loraAlpha: 8, targetModules: 'all-linear', seed: 5 }, name)
    const optimizer = new AdamW(model.trainableParameters(name), { learningRate: 1e-2 })
    const running = beside()
    const losses: number[] = []
    for (let step = 0; step < 8; step++) {
      const { loss } = model.forward(batch, { adapter: name })
      loss!.backward()
      await optimizer.step()
      optimizer.zeroGrad()
      losses.push(await loss!.item())
      loss!.dispose()
    }
    await running
    optimizer.dispose()
    return losses
  }
  const options = { adapter: null, maxNewTokens: 60, eosTokenId: [] }
  const expected = (await generator.generate(PROMPTS, options)).map(({ text }) => text)
  const alone = await train('alone', async () => {})
  let texts: string[] = []
  const together = await train('together', async () => {
    texts = (await generator.generate(PROMPTS, options)).map(({ text }) => text)
  })
  t.same(together, alone, 'the training does not notice')
  t.ok(alone.at(-1)! < alone[0]!)
  t.same(texts, expected, 'nor does the generation')
})

t.test('added tokens are read and never generated', async (t) => {
  const other = await Model.fromPretrained(join(GOLDENS, 'models', 'stories260k'), { device: 'cpu', dtype: 'float32' })
  const [id] = other.addTokens(['<blah>'], { trainable: true, predictable: false })
  const { tokenIds } = await other.generate('Once<blah><blah> upon', {
    maxNewTokens: 10,
    repetitionPenalty: 1.2,
    noRepeatNgramSize: 2,
  })
  t.equal(id, 512)
  t.ok(tokenIds.length === 10 && tokenIds.every((token) => token < 512))
  await t.rejects(other.generate({ inputIds: [1, 513] }), { code: 'ERR_INVALID_ARGUMENT' })
  await other.dispose()
})

t.test('a disposed generator or model is refused', async (t) => {
  const other = await Model.fromPretrained(join(GOLDENS, 'models', 'stories260k'), { device: 'cpu' })
  const own = new Generator(other)
  const running = own.generate('Once', { maxNewTokens: 20 })
  await other.dispose()
  t.equal((await running).tokenIds.length, 20, 'dispose waits for calls in flight')
  await t.rejects(own.generate('Once'), { code: 'ERR_DISPOSED' })
  const ended = new Generator(model)
  await ended.dispose()
  await t.rejects(ended.generate('Once'), { code: 'ERR_DISPOSED' })
  await t.rejects(ended.score('Once', ['x']), { code: 'ERR_DISPOSED' })
  t.throws(() => ended.stream('Once'), { code: 'ERR_DISPOSED' })
})
