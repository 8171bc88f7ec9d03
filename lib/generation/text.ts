/** What turns token ids back into text: a tokenizer, or a part of one in tests. */
export interface Decoder {
  decode(tokenIds: readonly number[], options: { skipSpecialTokens: boolean }): string
}

/** Tokens of context that decide how the next one is spelt: a space that only a first word loses, a character cut in two. */
const CONTEXT = 8

/**
 * The text that `tokenIds` add after `context`: joined to the context's text it reads as if all were decoded at once. Special tokens
 * are left out.
 */
export function decodeAfter(decoder: Decoder, context: readonly number[], tokenIds: readonly number[]): string {
  const before = context.slice(-CONTEXT)
  const prefix = decode(decoder, before)
  const whole = decode(decoder, [...before, ...tokenIds])
  return whole.startsWith(prefix) ? whole.slice(prefix.length) : decode(decoder, tokenIds)
}

function decode(decoder: Decoder, tokenIds: readonly number[]): string {
  return tokenIds.length === 0 ? '' : decoder.decode(tokenIds, { skipSpecialTokens: true })
}

/** Decodes token by token and gives whole characters only: bytes wait until their character is complete. */
export class TextStream {
  readonly #decoder: Decoder
  #ids: number[]
  /** Tokens up to here are given out. */
  #given: number

  constructor(decoder: Decoder, context: readonly number[] = []) {
    this.#decoder = decoder
    this.#ids = context.slice(-CONTEXT)
    this.#given = this.#ids.length
  }

  /** The text that `tokenId` completes, '' if it completes none. */
  push(tokenId: number): string {
    this.#ids.push(tokenId)
    return this.#take(false)
  }

  /** What is left when no more tokens come; bytes of an incomplete character become U+FFFD. */
  end(): string {
    return this.#take(true)
  }

  #take(final: boolean): string {
    if (this.#given === this.#ids.length) return ''
    const text = decodeAfter(this.#decoder, this.#ids.slice(0, this.#given), this.#ids.slice(this.#given))
    if (!final && text.endsWith('\uFFFD')) return ''
    this.#ids = this.#ids.slice(-CONTEXT)
    this.#given = this.#ids.length
    return text
  }
}

/** Looks for texts that end a sequence in what was generated, wherever the borders of its tokens are. */
export class StopStrings {
  readonly #decoder: Decoder
  readonly #strings: readonly string[]
  readonly #tail: number

  constructor(decoder: Decoder, strings: readonly string[]) {
    this.#decoder = decoder
    this.#strings = strings
    // A token holds at least one byte, but for special ones, for which there is some room.
    this.#tail = Math.max(0, ...strings.map((text) => Buffer.byteLength(text))) + CONTEXT
  }

  /** Whether the new tokens, asked for after each of them, have come to a stop string. */
  reached(context: readonly number[], tokenIds: readonly number[]): boolean {
    if (this.#strings.length === 0) return false
    const from = Math.max(0, tokenIds.length - this.#tail)
    const before = from >= CONTEXT ? tokenIds.slice(from - CONTEXT, from) : [...context, ...tokenIds.slice(0, from)]
    const text = decodeAfter(this.#decoder, before, tokenIds.slice(from))
    return this.#strings.some((stop) => text.includes(stop))
  }
}
