import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { Tokenizer } from '../../../lib/data/tokenizer.js'

const fixtures = new URL('../../fixtures/', import.meta.url).pathname
const stories = () => Tokenizer.fromFolder(`${fixtures}stories260k`)
const chatml = () => Tokenizer.fromFolder(`${fixtures}chat/chatml/tokenizer`)

t.test('SentencePiece: ids and texts of the reference', async (t) => {
  const tokenizer = await stories()
  const cases = JSON.parse(readFileSync(`${fixtures}stories260k/encodings.json`, 'utf8'))
  for (const { text, ids, decoded } of cases) {
    t.same(tokenizer.encode(text), ids)
    t.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), decoded)
  }
  t.equal(tokenizer.vocabSize, 512)
  t.match(tokenizer, { bosTokenId: 1, eosTokenId: 2, eosTokenIds: [2], padTokenId: null, hasChatTemplate: false })
  t.equal(tokenizer.decode([]), '')
  t.equal(tokenizer.decode([100_000]), '', 'ids beyond the vocabulary are left out')
  t.equal(tokenizer.decode([233, 154]), '\uFFFD\uFFFD', 'bytes of a character that is cut off')
})

const text = fc.string({
  unit: fc.oneof(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 3 }), fc.constantFrom(' ', '\n', 'a', '▁')),
})

for (const [name, open] of Object.entries({ stories, chatml })) {
  t.test(`${name}: tokens spell their text`, async () => {
    const tokenizer = await open()
    fc.assert(
      fc.property(text, (text) => {
        const ids = tokenizer.encode(text, { addSpecialTokens: false })
        const offsets = tokenizer.tokenOffsets(ids, tokenizer.normalize(text))
        return offsets !== null && offsets.at(-1) === Buffer.byteLength(tokenizer.normalize(text))
      }),
    )
  })
}

t.test('byte-level: decode inverts encode', async () => {
  const tokenizer = await chatml()
  fc.assert(fc.property(text, (text) => tokenizer.decode(tokenizer.encode(text)) === text))
})

t.test('bytes of tokens', async (t) => {
  const tokenizer = await stories()
  t.same([...tokenizer.tokenBytes(13)], [0x0a], 'byte fallback')
  t.equal(Buffer.from(tokenizer.tokenBytes(403)).toString(), ' Once')
  t.same([...tokenizer.tokenBytes(9999)], [])
})

t.test('new tokens get the next ids, are saved, and read back', async (t) => {
  const tokenizer = await chatml()
  const size = tokenizer.vocabSize
  t.same(tokenizer.addTokens(['<blah>', '<new>', '<newer>', '<new>']), [7, size, size + 1, size])
  t.equal(tokenizer.vocabSize, size + 2)
  t.same(tokenizer.encode('a<new>b').slice(1, 2), [size])
  t.equal(tokenizer.decode([size], { skipSpecialTokens: true }), '')
  t.throws(() => tokenizer.addTokens(['']), { code: 'ERR_INVALID_ARGUMENT' })

  const folder = `${t.testdir()}/new/folder`
  await tokenizer.save(folder)
  t.same(readdirSync(folder).sort(), ['chat_template.jinja', 'tokenizer.json', 'tokenizer_config.json'])
  const again = await Tokenizer.fromFolder(folder)
  t.equal(again.convertTokensToIds('<newer>'), size + 1)
  t.same(again.convertTokensToIds(['<s>', 'nothing']), [8, null])
  const messages = [{ role: 'user', content: 'Hi' }]
  t.same(again.applyChatTemplate(messages).inputIds, tokenizer.applyChatTemplate(messages).inputIds)
})

t.test('tokens that only tokenizer_config.json lists are known', async (t) => {
  const folder = t.testdir()
  cpSync(`${fixtures}stories260k`, folder, { recursive: true })
  const config = JSON.parse(readFileSync(`${folder}/tokenizer_config.json`, 'utf8'))
  config.added_tokens_decoder = { 512: { content: '<tool>', special: true } }
  config.eos_token = { content: '<tool>' }
  writeFileSync(`${folder}/tokenizer_config.json`, JSON.stringify(config))
  const tokenizer = await Tokenizer.fromFolder(folder)
  t.match(tokenizer, { vocabSize: 513, eosTokenId: 512 })
})

t.test('files that are none', async (t) => {
  const folder = t.testdir()
  await t.rejects(Tokenizer.fromFolder(folder), { code: 'ERR_IO', message: /tokenizer\.json/ })
  for (const broken of [
    '{',
    '[]',
    '{}',
    '{"model": {"type": "Unheard"}}',
    '{"model": {"type": "BPE", "vocab": 3}}',
    '{"model": {}, "added_tokens": 3}',
  ]) {
    writeFileSync(`${folder}/tokenizer.json`, broken)
    await t.rejects(Tokenizer.fromFolder(folder), { code: 'ERR_CORRUPT_FILE' }, broken)
  }
  mkdirSync(`${folder}/sub/tokenizer.json`, { recursive: true })
  await t.rejects(Tokenizer.fromFolder(`${folder}/sub`), { code: 'ERR_IO' })
})
