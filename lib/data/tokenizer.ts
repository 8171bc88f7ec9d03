import { Tokenizer as Encoder } from '@huggingface/tokenizers'
import { invalidArgument, QuantuneError } from '../errors.js'
import type { JsonObject } from '../formats/json.js'
import { assertKnownKeys } from '../options.js'
import { type ApplyChatTemplateOptions, applyChatTemplate, type ChatMessage, type RenderedChat, templatesOf } from './chat.js'

export type { ApplyChatTemplateOptions, ChatMessage, RenderedChat } from './chat.js'

import { alignTokens, byteFallback, bytesOfToken, type Spelling, spellingOf, unicodeForm } from './token-bytes.js'
import {
  type AddedToken,
  addedTokensOf,
  readTokenizerFiles,
  specialToken,
  type TokenizerFiles,
  writeTokenizerFiles,
} from './tokenizer-files.js'

export interface EncodeOptions {
  /** Add what the tokenizer puts around a text (e.g. the beginning-of-sequence token). Default: true. */
  addSpecialTokens?: boolean
}

export interface DecodeOptions {
  /** Leave special tokens out of the text. Default: false. */
  skipSpecialTokens?: boolean
}

/** A Hugging Face tokenizer (tokenizer.json) with its chat template. */
export class Tokenizer {
  readonly #files: TokenizerFiles
  readonly #spelling: Spelling
  #encoder!: Encoder
  #added = new Map<number, AddedToken>()
  #specialIds = new Set<number>()
  #bytes: (Uint8Array | undefined)[] = []
  #vocabSize = 0

  /** For files that are in memory; usually `Tokenizer.fromFolder`. */
  constructor(files: TokenizerFiles) {
    this.#files = { ...files, tokenizer: { ...files.tokenizer, added_tokens: addedTokensOf(files) } }
    this.#spelling = spellingOf(files.tokenizer)
    this.#build()
  }

  /**
   * Reads tokenizer.json, tokenizer_config.json and chat_template.jinja.
   * @throws ERR_IO when tokenizer.json is missing, ERR_CORRUPT_FILE when it is none
   */
  static async fromFolder(folder: string): Promise<Tokenizer> {
    const files = await readTokenizerFiles(folder)
    try {
      return new Tokenizer(files)
    } catch (cause) {
      if (cause instanceof QuantuneError) throw cause
      const message = `${folder}/tokenizer.json is no tokenizer that can be read: ${(cause as Error).message}`
      throw new QuantuneError('ERR_CORRUPT_FILE', message, { details: { path: folder }, cause })
    }
  }

  #build(): void {
    const { tokenizer, config } = this.#files
    const complete = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...tokenizer }
    this.#encoder = new Encoder(complete, config)
    this.#added = new Map((tokenizer.added_tokens as AddedToken[]).map((token) => [token.id, token]))
    this.#specialIds = new Set([...this.#added.values()].filter((token) => token.special).map((token) => token.id))
    this.#bytes = []
    this.#vocabSize = 0
    for (const id of this.#encoder.get_vocab().values()) this.#vocabSize = Math.max(this.#vocabSize, id + 1)
  }

  /** One more than the largest token id, added tokens included: the rows that an embedding must have. */
  get vocabSize(): number {
    return this.#vocabSize
  }

  get bosToken(): string | null {
    return specialToken(this.#files.config, 'bos_token')
  }

  get eosToken(): string | null {
    return specialToken(this.#files.config, 'eos_token')
  }

  get padToken(): string | null {
    return specialToken(this.#files.config, 'pad_token')
  }

  get unkToken(): string | null {
    return specialToken(this.#files.config, 'unk_token')
  }

  get bosTokenId(): number | null {
    return this.#idOf(this.bosToken)
  }

  get eosTokenId(): number | null {
    return this.#idOf(this.eosToken)
  }

  get padTokenId(): number | null {
    return this.#idOf(this.padToken)
  }

  /** The tokens that end a text by the tokenizer's files; a model's generation_config.json may name others. */
  get eosTokenIds(): number[] {
    return this.eosTokenId === null ? [] : [this.eosTokenId]
  }

  /** Ids of the special tokens: left out by `decode` with `skipSpecialTokens`. */
  get specialTokenIds(): ReadonlySet<number> {
    return this.#specialIds
  }

  get addedTokens(): readonly Readonly<AddedToken>[] {
    return [...this.#added.values()]
  }

  /** tokenizer_config.json as read. */
  get config(): Readonly<JsonObject> {
    return this.#files.config
  }

  #idOf(token: string | null): number | null {
    return token === null ? null : (this.#encoder.token_to_id(token) ?? null)
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    assertKnownKeys(options, ['addSpecialTokens'], 'EncodeOptions')
    const { addSpecialTokens = true } = options
    if (typeof text !== 'string') throw invalidArgument(`text must be a string, got ${typeof text}`)
    return this.#encoder.encode(text, { add_special_tokens: addSpecialTokens }).ids
  }

  /** Ids that are no tokens (an embedding may have more rows than the vocabulary) are left out. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    assertKnownKeys(options, ['skipSpecialTokens'], 'DecodeOptions')
    const { skipSpecialTokens = false } = options
    if (typeof ids !== 'object' || ids === null) throw invalidArgument(`ids must be a list of token ids, got ${typeof ids}`)
    const known = Array.from(ids, Number).filter(
      (id) => this.#encoder.id_to_token(id) !== undefined && !(skipSpecialTokens && this.#specialIds.has(id)),
    )
    if (known.length === 0) return ''
    const cleanUp = this.#files.config.clean_up_tokenization_spaces === true
    if (this.#spelling === 'byte-level' && !cleanUp) return this.#decodeByteLevel(known)
    if (this.#spelling === 'sentencepiece' && !cleanUp) return this.#decodeSentencePiece(known)
    return this.#encoder.decode(known, { skip_special_tokens: skipSpecialTokens, clean_up_tokenization_spaces: cleanUp })
  }

  #decodeByteLevel(ids: readonly number[]): string {
    return decodeUtf8(Buffer.concat(ids.map((id) => this.tokenBytes(id))))
  }

  /** As the Rust decoder: a run of byte tokens that is no UTF-8 becomes one replacement character per byte. */
  #decodeSentencePiece(ids: readonly number[]): string {
    let text = ''
    let run: number[] = []
    const endRun = () => {
      if (run.length === 0) return
      const bytes = Uint8Array.from(run)
      text += isUtf8(bytes) ? decodeUtf8(bytes) : '\uFFFD'.repeat(run.length)
      run = []
    }
    for (const id of ids) {
      const byte = this.#added.has(id) ? null : byteFallback(this.#encoder.id_to_token(id)!)
      if (byte !== null) run.push(byte)
      else {
        endRun()
        text += decodeUtf8(this.tokenBytes(id))
      }
    }
    endRun()
    // The space that encoding put before the text.
    return text.startsWith(' ') && !this.#added.has(ids[0]!) ? text.slice(1) : text
  }

  /**
   * The bytes that a token stands for in a text; of several tokens together they are UTF-8. SentencePiece's word start is a space.
   * Empty for an id that is no token.
   */
  tokenBytes(id: number): Uint8Array {
    const cached = this.#bytes[id]
    if (cached) return cached
    const token = this.#encoder.id_to_token(id)
    let bytes = new Uint8Array()
    if (token !== undefined) {
      bytes = new Uint8Array(this.#added.has(id) ? new TextEncoder().encode(token) : bytesOfToken(token, this.#spelling))
      this.#bytes[id] = bytes
    }
    return bytes
  }

  /**
   * The byte of `text` (UTF-8) at which each token of its encoding begins, and one more entry for the end; null when the tokens do not
   * spell the text, because the tokenizer changed it. Pass the text through `normalize` first.
   */
  tokenOffsets(ids: readonly number[], text: string): Int32Array | null {
    const pieces = ids.map((id) => {
      const added = this.#added.get(id)
      return {
        bytes: this.tokenBytes(id),
        special: added?.special ?? false,
        lstrip: added?.lstrip ?? false,
        rstrip: added?.rstrip ?? false,
      }
    })
    return alignTokens(pieces, new TextEncoder().encode(text))
  }

  /** The form of a text that its tokens spell: after Unicode normalization, if any; SentencePiece's word mark is a space. */
  normalize(text: string): string {
    const form = unicodeForm(this.#files.tokenizer)
    const spaced = this.#spelling === 'sentencepiece' ? text.replaceAll('\u2581', ' ') : text
    return form === null ? spaced : spaced.normalize(form)
  }

  /** The id of a token as the vocabulary spells it, null when it has none. */
  convertTokensToIds(token: string): number | null
  convertTokensToIds(tokens: readonly string[]): (number | null)[]
  convertTokensToIds(tokens: string | readonly string[]): number | null | (number | null)[] {
    return typeof tokens === 'string' ? this.#idOf(tokens) : tokens.map((token) => this.#idOf(token))
  }

  /** The vocabulary's spelling of an id, null when it is no token. */
  convertIdsToTokens(id: number): string | null {
    return this.#encoder.id_to_token(id) ?? null
  }

  /**
   * Appends tokens to the vocabulary, special ones unless said otherwise; a token that is there keeps its id.
   * @returns their ids, in the order of `tokens`
   * @throws ERR_INVALID_ARGUMENT for an empty token
   */
  addTokens(tokens: readonly string[], { special = true }: { special?: boolean } = {}): number[] {
    for (const token of tokens) {
      if (typeof token !== 'string' || token === '')
        throw invalidArgument('a new token must be a string of one character or more')
    }
    const list = this.#files.tokenizer.added_tokens as AddedToken[]
    let next = this.#vocabSize
    const ids = tokens.map((content) => {
      const known = this.#idOf(content) ?? list.find((token) => token.content === content)?.id
      if (known !== undefined && known !== null) return known
      list.push({ id: next, content, single_word: false, lstrip: false, rstrip: false, normalized: !special, special })
      return next++
    })
    if (next > this.#vocabSize) this.#build()
    return ids
  }

  /** Writes tokenizer.json, tokenizer_config.json and, if it was a file of its own, chat_template.jinja; creates the folder. */
  async save(folder: string): Promise<void> {
    await writeTokenizerFiles(folder, this.#files)
  }

  get hasChatTemplate(): boolean {
    return templatesOf(this.#files).size > 0
  }

  /** The chat templates by name; the usual one is `default`. */
  get chatTemplates(): ReadonlyMap<string, string> {
    return templatesOf(this.#files)
  }

  /** Replaces the chat template (`chat_template.jinja` when saved). */
  set chatTemplate(source: string) {
    this.#files.chatTemplateFile = source
  }

  /**
   * Renders a chat as transformers does and encodes it once.
   * @returns token ids and a mask that is 1 where the assistant speaks; the text with `tokenize: false`
   * @throws ERR_INVALID_ARGUMENT when there is no template, when the template refuses the messages; on reading `assistantMask` when
   *   the assistant's spans cannot be recovered
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ApplyChatTemplateOptions & { tokenize: false }): string
  applyChatTemplate(messages: readonly ChatMessage[], options?: ApplyChatTemplateOptions & { tokenize?: true }): RenderedChat
  applyChatTemplate(messages: readonly ChatMessage[], options?: ApplyChatTemplateOptions): RenderedChat | string
  applyChatTemplate(messages: readonly ChatMessage[], options: ApplyChatTemplateOptions = {}): RenderedChat | string {
    return applyChatTemplate(this, this.chatTemplates, messages, options)
  }
}

function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    return true
  } catch {
    return false
  }
}

function decodeUtf8(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
}
