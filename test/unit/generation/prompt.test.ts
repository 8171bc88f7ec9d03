import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { invalidArgument, QuantuneError } from '../../../lib/errors.js'
import { encodePrompt, type Prompt, tokenizerOf } from '../../../lib/generation/prompt.js'

const FIXTURES = fileURLToPath(new URL('../../fixtures', import.meta.url))
const stories = await Tokenizer.fromFolder(join(FIXTURES, 'stories260k'))
const smollm2 = await Tokenizer.fromFolder(join(FIXTURES, 'chat', 'smollm2', 'tokenizer'))
const LIMITS = { contextLength: 100, vocabSize: 100_000 }
const PLAIN = { forcedPrefix: '', continueFinalMessage: false }
const ids = (tokenizer: Tokenizer | null, prompt: Prompt, options = PLAIN) =>
  Array.from(encodePrompt(tokenizer, prompt, options, LIMITS).inputIds)

t.test('special tokens are added once', async (t) => {
  t.same(ids(stories, 'Once upon a time'), [1, 403, 407, 261, 378])
  const spelled = ids(stories, '<s>Once')
  t.equal(spelled.filter((id) => id === 1).length, 1)
  t.same(ids(stories, { inputIds: [403, 407] }), [403, 407], 'token ids stay as they are')
})

t.test('a chat is rendered with what opens the answer, and with its start', async (t) => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hi' },
  ]
  const plain = encodePrompt(smollm2, { messages }, PLAIN, LIMITS)
  t.match(smollm2.decode(plain.inputIds), /Hi<\|im_end\|>\n<\|im_start\|>assistant\n$/)
  t.same(plain.context, [], 'the answer is a text of its own')
  const forced = encodePrompt(smollm2, { messages }, { ...PLAIN, forcedPrefix: '{"answer":' }, LIMITS)
  t.match(smollm2.decode(forced.inputIds), /assistant\n\{"answer":$/)
  t.equal(forced.context.length, forced.inputIds.length)
  const open = [...messages, { role: 'assistant', content: 'Hello, I am' }]
  const continued = encodePrompt(smollm2, { messages: open }, { ...PLAIN, continueFinalMessage: true }, LIMITS)
  t.match(smollm2.decode(continued.inputIds), /assistant\nHello, I am$/)
})

t.test('a forced start follows text and token ids', async (t) => {
  const options = { ...PLAIN, forcedPrefix: ' upon a time' }
  t.same(ids(stories, 'Once', options), ids(stories, 'Once upon a time'))
  t.ok(ids(stories, { inputIds: [1, 403] }, options).length > 2)
})

t.test('what cannot be encoded is refused', async (t) => {
  const refused = (prompt: unknown, code: string, tokenizer: Tokenizer | null = stories) =>
    t.throws(() => ids(tokenizer, prompt as Prompt), { code })
  refused({ inputIds: [] }, 'ERR_INVALID_ARGUMENT')
  refused({ inputIds: [100_000] }, 'ERR_INVALID_ARGUMENT')
  refused({ inputIds: new Array(100).fill(1) }, 'ERR_CONTEXT_LENGTH')
  refused({ messages: [] }, 'ERR_INVALID_ARGUMENT')
  refused(7, 'ERR_INVALID_ARGUMENT')
  refused(null, 'ERR_INVALID_ARGUMENT')
  refused('text', 'ERR_INVALID_ARGUMENT', null)
  t.same(ids(null, { inputIds: [5] }), [5], 'token ids need no tokenizer')
})

t.test('a model without a tokenizer has none; other failures pass', async (t) => {
  const failing = (error: Error) => ({
    get tokenizer(): Tokenizer {
      throw error
    },
  })
  t.equal(tokenizerOf({ tokenizer: stories }), stories)
  t.equal(tokenizerOf(failing(invalidArgument('none'))), null)
  t.throws(() => tokenizerOf(failing(new QuantuneError('ERR_DISPOSED', 'gone'))), { code: 'ERR_DISPOSED' })
})
