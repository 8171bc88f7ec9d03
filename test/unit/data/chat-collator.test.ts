import { readdirSync, readFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { ChatCollator, type TrainingExample } from '../../../lib/data/chat-collator.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'

const fixtures = new URL('../../fixtures/chat/', import.meta.url).pathname
const chatml = () => Tokenizer.fromFolder(`${fixtures}chatml/tokenizer`)
const refused = { name: 'QuantuneError', code: 'ERR_INVALID_ARGUMENT' }
const chat = (question: string, answer: string) => ({
  messages: [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ],
})
const green = (text: string) => `\x1b[32m${text}\x1b[0m`

t.test('labels of the reference, reasoning tokens masked', async (t) => {
  for (const name of readdirSync(fixtures)) {
    const cases = JSON.parse(readFileSync(`${fixtures}${name}/cases.json`, 'utf8'))
    const tokenizer = await Tokenizer.fromFolder(`${fixtures}${name}/tokenizer`)
    const collator = new ChatCollator(tokenizer, { ignoreTokens: ['<blah>'] })
    for (const { messages, input_ids, assistant_mask, labels_reasoning_masked } of cases) {
      const { inputIds, labels } = collator.encode({ messages })
      t.same([...inputIds], input_ids)
      t.same([...labels], labels_reasoning_masked ?? input_ids.map((id: number, i: number) => (assistant_mask[i] ? id : -100)))
    }
  }
})

t.test('a batch shares its prefix and drops what predicts nothing', async (t) => {
  const tokenizer = await chatml()
  const examples = [chat('Same question?', 'Yes.'), chat('Same question?', 'No.')]
  const collator = new ChatCollator(tokenizer)
  const batch = collator.collate(examples)
  const separate = new ChatCollator(tokenizer, { sharePrefixes: false, trimUnused: false }).collate(examples)
  t.ok(batch.numTokens < separate.numTokens)
  t.equal(batch.numTargets, separate.numTargets)
  t.equal(separate.numTokens, separate.numSampleTokens)
  t.equal(collator.encode(examples[0]!), collator.encode(examples[0]!), 'an example is encoded once')
  const [drawn] = collator.explain(examples).split('\n')
  t.equal(
    drawn,
    `2 samples: ${batch.numTokens} tokens as a tree, ${batch.numSampleTokens} side by side (1.7 x), loss on ${batch.numTargets}`,
  )
})

t.test('beginnings are shared by default where nothing is dropped', async (t) => {
  const tokenizer = await chatml()
  const examples = [chat('Same question?', 'Yes.'), chat('Same question?', 'No.')]
  const shares = (options: object, context?: object) => {
    const { numTokens, numSampleTokens } = new ChatCollator(tokenizer, options).collate(examples, context)
    return numTokens < numSampleTokens
  }
  t.equal(shares({}), true)
  t.equal(shares({}, { dropout: 0 }), true)
  t.equal(shares({}, { dropout: 0.1 }), false)
  t.equal(shares({ sharePrefixes: true }, { dropout: 0.1 }), true)
  t.equal(shares({ sharePrefixes: false }), false)
})

t.test('the other kinds of examples', async (t) => {
  const tokenizer = await chatml()
  const collator = new ChatCollator(tokenizer)
  const end = '<|eot_id|>'
  const explained = (example: TrainingExample, options = {}) => new ChatCollator(tokenizer, options).explain(example)
  t.equal(explained(chat('Hi', 'Yo')), `<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n${green('Yo<|im_end|>')}\n`)
  const all = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n'
  t.equal(explained(chat('Hi', 'Yo'), { assistantOnlyLoss: false }), green(all))
  t.equal(explained({ prompt: '1+1=', completion: '2' }), `1+1=${green(`2${end}`)}`)
  t.equal(explained({ prompt: '1+1=', completion: '2' }, { completionOnlyLoss: false }), green(`1+1=2${end}`))
  t.equal(explained({ text: `a 😀${end}` }), green(`a 😀${end}`))
  const [user, assistant] = chat('Hi', 'Yo').messages as [{ role: string; content: string }, { role: string; content: string }]
  t.equal(
    explained({ prompt: [user, assistant, user], completion: [assistant] }),
    `<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n${green('Yo<|im_end|>')}\n`,
  )
  t.same([...collator.encode({ inputIds: [4, 5] }).labels], [4, 5])
  t.same([...collator.encode({ inputIds: [4, 5], labels: [-100, 5] }).labels], [-100, 5])
})

t.test('what is longer than maxLength is cut and counted', async (t) => {
  const tokenizer = await chatml()
  const collator = new ChatCollator(tokenizer, { maxLength: 12 })
  const long = chat('A question that is much longer than twelve tokens are, is it not?', 'Yes.')
  t.equal(collator.encode(long).inputIds.length, 12)
  collator.encode(long)
  collator.encode({ inputIds: Array.from({ length: 15 }, (_, i) => i) })
  collator.encode({ inputIds: [1, 2] })
  const whole = new ChatCollator(tokenizer).encode(long).inputIds.length
  t.same(collator.truncation, { examples: 3, truncated: 2, withoutLabels: 1, tokens: whole - 12 + 3 })
  t.equal(collator.collate([long]).numTargets, 0, 'a batch without labels is legal')
})

t.test('tokens that nothing attends to', async (t) => {
  const tokenizer = await chatml()
  const [blah] = tokenizer.addTokens(['<blah>']) as [number]
  const batch = new ChatCollator(tokenizer, { ignoreTokens: ['<blah>'], attendIgnoredTokens: false }).collate([
    chat('Hi', '<blah>Yo'),
  ])
  for (const [row, id] of batch.inputIds.entries()) t.equal(batch.end[row], id === blah ? row + 1 : batch.numTokens)
  t.notOk(batch.targetIds.includes(blah))
})

t.test('property: a batch holds exactly the labels of its examples', async () => {
  const collator = new ChatCollator(await chatml())
  const word = fc.constantFrom('Yes', 'No', ' two', '<blah>', 'é😀', '\n', '')
  const content = fc.array(word, { maxLength: 4 }).map((words) => words.join(''))
  const conversation = fc
    .array(fc.tuple(content, content), { minLength: 1, maxLength: 3 })
    .map((turns) => ({ messages: turns.flatMap(([q, a]) => chat(q, a).messages) }))
  fc.assert(
    fc.property(fc.array(conversation, { minLength: 1, maxLength: 4 }), (examples) => {
      const expected = examples.flatMap((example) => [...collator.encode(example).labels].filter((label) => label !== -100))
      const batch = collator.collate(examples)
      return [...batch.targetIds].sort().join() === expected.sort().join()
    }),
    { numRuns: 60 },
  )
})

t.test('what it refuses', async (t) => {
  const tokenizer = await chatml()
  const collator = new ChatCollator(tokenizer)
  t.throws(() => new ChatCollator(tokenizer, { max_length: 3 } as never), { ...refused, message: /maxLength/ })
  t.throws(() => new ChatCollator(tokenizer, { maxLength: 0 }), refused)
  t.throws(() => new ChatCollator(tokenizer, { ignoreTokens: ['<unknown>'] }), { ...refused, message: /addTokens/ })
  t.throws(() => collator.collate([]), refused)
  const bad = [
    3,
    null,
    {},
    { prompt: 'x' },
    { prompt: 'x', completion: [] },
    { inputIds: [] },
    { inputIds: [-1] },
    { inputIds: [1], labels: [] },
  ]
  for (const example of bad) t.throws(() => collator.collate([example as never]), refused, JSON.stringify(example))
})
