import type { JsonObject } from '../formats/json.js'

/** How a tokenizer's tokens spell bytes. */
export type Spelling = 'byte-level' | 'sentencepiece' | 'plain'

/**
 * GPT-2's alphabet: printable bytes stand for themselves, the others for the code points from 256 on (Radford et al. 2019,
 * `bytes_to_unicode`). Maps the character to the byte.
 */
export const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
  const map = new Map<string, number>()
  let next = 256
  for (let byte = 0; byte < 256; byte++) map.set(String.fromCodePoint(printable(byte) ? byte : next++), byte)
  return map
})()

function typesIn(component: unknown): string[] {
  if (typeof component !== 'object' || component === null) return []
  const { type, decoders, normalizers } = component as JsonObject
  const inner = [decoders, normalizers].flatMap((list) => (Array.isArray(list) ? list.flatMap(typesIn) : []))
  return typeof type === 'string' ? [type, ...inner] : inner
}

/** Reads from tokenizer.json how tokens spell bytes: the decoder says it. */
export function spellingOf(tokenizerJson: JsonObject): Spelling {
  const types = typesIn(tokenizerJson.decoder)
  if (types.includes('ByteLevel')) return 'byte-level'
  const byteFallback = (tokenizerJson.model as JsonObject | undefined)?.byte_fallback === true
  return byteFallback || types.includes('Metaspace') || types.includes('ByteFallback') ? 'sentencepiece' : 'plain'
}

/** The Unicode normalization that tokenizer.json applies to text before it splits it, if any. */
export function unicodeForm(tokenizerJson: JsonObject): 'NFC' | 'NFD' | 'NFKC' | 'NFKD' | null {
  const forms = ['NFC', 'NFD', 'NFKC', 'NFKD'] as const
  const types = typesIn(tokenizerJson.normalizer)
  return forms.find((form) => types.includes(form)) ?? null
}

const encoder = new TextEncoder()

/** The bytes that a token of the vocabulary (not an added one) stands for. */
export function bytesOfToken(token: string, spelling: Spelling): Uint8Array {
  if (spelling === 'byte-level') {
    const bytes = Array.from(token, (character) => BYTE_OF_CHARACTER.get(character))
    return bytes.includes(undefined) ? encoder.encode(token) : Uint8Array.from(bytes as number[])
  }
  if (spelling === 'sentencepiece') {
    const byte = byteFallback(token)
    return byte === null ? encoder.encode(token.replaceAll('\u2581', ' ')) : Uint8Array.of(byte)
  }
  return encoder.encode(token)
}

/** The byte of a SentencePiece token such as `<0x0A>`, null for any other token. */
export function byteFallback(token: string): number | null {
  const match = /^<0x([0-9A-F]{2})>$/i.exec(token)
  return match ? Number.parseInt(match[1]!, 16) : null
}

/** What {@link alignTokens} has to know of a token. */
export interface TokenPiece {
  bytes: Uint8Array
  special: boolean
  /** An added token that swallows white space before or after it. */
  lstrip: boolean
  rstrip: boolean
}

const SPACE = 0x20

function spells(bytes: Uint8Array, text: Uint8Array, at: number, from = 0): boolean {
  if (at + bytes.length - from > text.length) return false
  for (let i = from; i < bytes.length; i++) if (bytes[i] !== text[at + i - from]) return false
  return true
}

const isBlank = (byte: number | undefined) => byte === SPACE || (byte !== undefined && byte >= 9 && byte <= 13)

/**
 * Where each token lies in the text that was encoded: `starts[t]` is its first byte, `starts[tokens.length]` the end. Tokens are
 * matched by their bytes, so nothing is ever encoded twice. What a tokenizer adds (a space before SentencePiece's words, special
 * tokens around a text) has no bytes of the text. Null when the tokens do not spell the text, because the tokenizer changed it.
 */
export function alignTokens(tokens: readonly TokenPiece[], text: Uint8Array): Int32Array | null {
  const starts = new Int32Array(tokens.length + 1)
  let at = 0
  for (const [t, token] of tokens.entries()) {
    const swallows = token.lstrip || (t > 0 && tokens[t - 1]!.rstrip)
    const begin = at
    if (swallows && !spells(token.bytes, text, at)) while (isBlank(text[at])) at++
    starts[t] = at
    if (spells(token.bytes, text, at)) at += token.bytes.length
    else if (token.bytes[0] === SPACE && spells(token.bytes, text, at, 1)) at += token.bytes.length - 1
    else if (token.special) {
      at = begin
      starts[t] = begin
    } else return null
  }
  if (tokens.at(-1)?.rstrip) while (isBlank(text[at])) at++
  starts[tokens.length] = at
  return at === text.length ? starts : null
}
