import { inspect } from 'node:util'
import { z } from 'zod'
import { invalidArgument, QuantuneError } from '../errors.js'
import { parseOptions } from '../options.js'
import { Batch, IGNORE_LABEL } from './batch.js'
import type { BatchData } from './batch-data.js'
import { type EncodedExample, encodeExample, type TrainingExample } from './examples.js'
import type { Tokenizer } from './tokenizer.js'
import { drawTree } from './tree-picture.js'

export type { EncodedExample, TrainingExample } from './examples.js'

/** What a batch is made for. */
export interface CollateContext {
  /** The largest probability with which training drops an input of the adapter; 0 or absent: none is dropped. */
  dropout?: number
}

/** Makes a batch of examples. */
export interface Collator<Example = TrainingExample> {
  collate(examples: readonly Example[], context?: CollateContext): BatchData | Promise<BatchData>
  /** Token ids and labels of one example, for samplers that group by length or by prefix and for `maxTokensPerBatch`. */
  encode?(example: Example): EncodedExample
  /** What had to be cut so far. */
  readonly truncation?: TruncationReport
}

/** What `maxLength` did to the examples seen so far (an example object that is seen again counts once). */
export interface TruncationReport {
  examples: number
  /** Examples longer than `maxLength`. */
  truncated: number
  /** Examples that lost their last label by it: they teach nothing. */
  withoutLabels: number
  /** Tokens cut off. */
  tokens: number
}

const ChatCollatorOptions = z.strictObject({
  maxLength: z.number().int().min(1).nullable().default(null),
  assistantOnlyLoss: z.boolean().default(true),
  completionOnlyLoss: z.boolean().default(true),
  ignoreTokens: z.array(z.string()).readonly().default([]),
  attendIgnoredTokens: z.boolean().default(true),
  sharePrefixes: z.boolean().optional(),
  trimUnused: z.boolean().default(true),
  chatTemplate: z.string().optional(),
  templateVariables: z.record(z.string(), z.unknown()).default({}),
})

export interface ChatCollatorOptions {
  /** Longer examples lose their end; see {@link ChatCollator.truncation}. Default: null, no limit. */
  maxLength?: number | null
  /** Loss on the assistant's tokens only; false: on all tokens of a chat. Default: true. */
  assistantOnlyLoss?: boolean
  /** Loss on the completion only, for examples with prompt and completion. Default: true. */
  completionOnlyLoss?: boolean
  /** Tokens that get no loss wherever they stand (reasoning tokens). Default: none. */
  ignoreTokens?: readonly string[]
  /** Whether other tokens may attend to `ignoreTokens`. Default: true. */
  attendIgnoredTokens?: boolean
  /**
   * Examples of a batch that begin alike share those tokens: less work, the same gradient. With LoRA dropout a shared token draws its
   * dropout once, which is still a valid sample of it, but not that of the separate examples. Default: true where nothing is dropped.
   */
  sharePrefixes?: boolean
  /** Leave out tokens after the last one that predicts a label. Default: true. */
  trimUnused?: boolean
  /** A template's source, or the name of one of the tokenizer's. Default: the tokenizer's. */
  chatTemplate?: string
  /** Variables for the chat template, under its own names. */
  templateVariables?: Readonly<Record<string, unknown>>
}

const SHORT = { depth: 3, maxStringLength: 80, maxArrayLength: 4, breakLength: Number.POSITIVE_INFINITY }
const GREEN = '\x1b[32m'
const RESET = '\x1b[0m'

/** Turns chats (and prompts, texts, token ids) into batches with labels where the assistant speaks. */
export class ChatCollator implements Collator<TrainingExample> {
  readonly tokenizer: Tokenizer
  readonly #options: z.output<typeof ChatCollatorOptions>
  readonly #cache = new WeakMap<object, EncodedExample>()
  readonly #truncation: TruncationReport = { examples: 0, truncated: 0, withoutLabels: 0, tokens: 0 }

  constructor(tokenizer: Tokenizer, options: ChatCollatorOptions = {}) {
    if (typeof tokenizer?.encode !== 'function') throw invalidArgument('ChatCollator: expected a Tokenizer (model.tokenizer)')
    this.tokenizer = tokenizer
    this.#options = parseOptions(ChatCollatorOptions, options, 'ChatCollatorOptions')
    this.#ignoredIds()
  }

  get truncation(): Readonly<TruncationReport> {
    return { ...this.#truncation }
  }

  /** Looked up at each use, as tokens may be added to the tokenizer later. */
  #ignoredIds(): ReadonlySet<number> {
    const ids = this.#options.ignoreTokens.map((token) => {
      const id = this.tokenizer.convertTokensToIds(token)
      if (id === null)
        throw invalidArgument(`ignoreTokens: "${token}" is no token of the tokenizer (add it with addTokens first)`)
      return id
    })
    return new Set(ids)
  }

  /**
   * Token ids and labels (-100: no loss) of an example, cut to `maxLength`; remembered for as long as the example object lives.
   * @throws ERR_INVALID_ARGUMENT for an example in no known form, one without tokens, or a chat whose labels cannot be found
   */
  encode(example: TrainingExample): EncodedExample {
    const known = this.#cache.get(example)
    if (known) return known
    const { chatTemplate, ...options } = this.#options
    const encoded = this.#cut(encodeExample(this.tokenizer, example, { ...options, chatTemplate }))
    this.#cache.set(example, encoded)
    return encoded
  }

  /** Says of an example that is refused which one it is. */
  #encodeNamed(example: TrainingExample, index: number): EncodedExample {
    try {
      return this.encode(example)
    } catch (error) {
      if (!(error instanceof QuantuneError)) throw error
      const message = `examples[${index}] of the batch: ${error.message} (it is ${inspect(example, SHORT)})`
      throw new QuantuneError(error.code, message, { details: { ...error.details, index, example }, cause: error.cause })
    }
  }

  #cut(encoded: EncodedExample): EncodedExample {
    const { inputIds, labels } = encoded
    const { maxLength } = this.#options
    if (inputIds.length === 0) throw invalidArgument('an example has no tokens')
    const ignored = this.#ignoredIds()
    for (let t = 0; t < labels.length; t++) if (ignored.has(labels[t]!)) labels[t] = IGNORE_LABEL
    this.#truncation.examples++
    if (maxLength === null || inputIds.length <= maxLength) return encoded
    const kept = { inputIds: inputIds.slice(0, maxLength), labels: labels.slice(0, maxLength) }
    this.#truncation.truncated++
    this.#truncation.tokens += inputIds.length - maxLength
    if (hasLabel(labels) && !hasLabel(kept.labels)) this.#truncation.withoutLabels++
    return kept
  }

  /** @throws ERR_INVALID_ARGUMENT for an empty batch, and as `encode` */
  collate(examples: readonly TrainingExample[], { dropout = 0 }: CollateContext = {}): Batch {
    if (!Array.isArray(examples) || examples.length === 0) throw invalidArgument('a batch needs at least one example')
    const { sharePrefixes = dropout === 0, trimUnused, attendIgnoredTokens } = this.#options
    const sequences = examples.map((example, index) => this.#encodeNamed(example, index))
    return Batch.pack(sequences, { sharePrefixes, trimUnused, notAttended: attendIgnoredTokens ? [] : this.#ignoredIds() })
  }

  /** The example as the model reads it, for a terminal: green where there is loss. Of several examples: their batch as a tree. */
  explain(example: TrainingExample | readonly TrainingExample[]): string {
    if (Array.isArray(example)) return drawTree(this.collate(example), { textOf: (ids) => this.#textOf(ids) })
    const { inputIds, labels } = this.encode(example as TrainingExample)
    let text = ''
    for (let from = 0; from < inputIds.length; ) {
      const labelled = labels[from] !== IGNORE_LABEL
      let to = from
      while (to < inputIds.length && (labels[to] !== IGNORE_LABEL) === labelled) to++
      const piece = this.#textOf(inputIds.subarray(from, to))
      text += labelled ? GREEN + piece + RESET : piece
      from = to
    }
    return text
  }

  #textOf(ids: Iterable<number>): string {
    return Buffer.concat(Array.from(ids, (id) => this.tokenizer.tokenBytes(id))).toString('utf8')
  }
}

/** Whether a label has a position before it that can predict it. */
function hasLabel(labels: Int32Array): boolean {
  return labels.subarray(1).some((label) => label !== IGNORE_LABEL)
}
