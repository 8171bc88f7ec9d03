import fc from 'fast-check'
import t from 'tap'
import { decodeAfter, StopStrings, TextStream } from '../../../lib/generation/text.js'

/** A token is a byte; 256 is special. */
const bytes = {
  decode: (ids: readonly number[]) =>
    new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(ids.filter((id) => id < 256))),
}
/** Words whose leading space is lost at a text's beginning, as with SentencePiece. */
const words = {
  decode: (ids: readonly number[]) =>
    ids
      .map((id) => ` w${id}`)
      .join('')
      .slice(1),
}
const idsOf = (text: string) => [...Buffer.from(text)]

t.test('a stream gives whole characters and, in all, the text', async () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), fc.string(), (text, context) => {
      const stream = new TextStream(bytes, idsOf(context))
      const parts = idsOf(text).map((id) => stream.push(id))
      parts.push(stream.end())
      return parts.join('') === text && parts.every((part) => !part.includes('\uFFFD'))
    }),
  )
})

t.test('an incomplete character comes out at the end', async (t) => {
  const stream = new TextStream(bytes)
  t.equal(stream.push(0xc3), '')
  t.equal(stream.push(256), '')
  t.equal(stream.end(), '\uFFFD')
  t.equal(stream.end(), '')
})

t.test('words join on to what was before them', async (t) => {
  t.equal(decodeAfter(words, [], [1, 2]), 'w1 w2')
  t.equal(decodeAfter(words, [7], [1, 2]), ' w1 w2')
  const stream = new TextStream(words, [7])
  t.same(
    [1, 2, 3].map((id) => stream.push(id)),
    [' w1', ' w2', ' w3'],
  )
  t.equal(decodeAfter(bytes, [0xc3], [0xa9, 0x61]), '\uFFFDa', 'a character cut by the context')
})

t.test('stop strings are found across tokens, once they are complete', async (t) => {
  const stops = new StopStrings(bytes, ['}\n', 'é!'])
  const first = (text: string, context = '') => {
    const ids = idsOf(text)
    return ids.findIndex((_, i) => stops.reached(idsOf(context), ids.slice(0, i + 1)))
  }
  t.equal(first('{"a": 1}\n and'), 8)
  t.equal(first('été!'), 5)
  t.equal(first('} \n'), -1)
  t.equal(first('\n', 'not the prompt’s }'), -1)
  t.equal(first(`${'x'.repeat(100)}}\n`), 101)
  t.equal(new StopStrings(bytes, []).reached([], [1]), false)
})

t.test('a stop string with a leading space is found in words', async (t) => {
  t.equal(new StopStrings(words, [' w2']).reached([], [1, 2]), true)
  t.equal(new StopStrings(words, [' w2']).reached([9], [2]), true)
  t.equal(new StopStrings(words, ['w1 w2 w3']).reached([9], [0, 1, 2, 3]), true)
})
