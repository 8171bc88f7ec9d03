import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { parseOptions } from '../options.js'

/** How to generate. What is not given comes from the model's `generation_config.json`, then from the defaults below. */
export interface GenerationConfig {
  /** The adapter to use: a name, or null for the bare base. Default: the model's current one. */
  adapter?: string | null
  /** New tokens at most. Default: what the context leaves, at most 512. */
  maxNewTokens?: number
  /** No end-of-sequence token before this many new tokens. Default: 0. */
  minNewTokens?: number
  /** Beams of the beam search; 1 searches greedily. Default: 1. */
  numBeams?: number
  /** Sequences returned per prompt, the best as the result, the others as its `alternatives`. Default: 1. */
  numReturnSequences?: number
  /** Beam scores are the sum of log-probabilities divided by length ** lengthPenalty. Default: 1. */
  lengthPenalty?: number
  /** true: stop at `numBeams` finished beams; false: when a better one is unlikely; 'never': when it is impossible. Default: false. */
  earlyStopping?: boolean | 'never'
  /** Draw tokens instead of taking the most likely one. Default: false. */
  doSample?: boolean
  /** Divides the logits before sampling. Default: 1. */
  temperature?: number
  /** Sample among the k most likely tokens; 0 is off. Default: 50. */
  topK?: number
  /** Sample among the fewest tokens whose probabilities reach p. Default: 1. */
  topP?: number
  /** Sample among tokens of at least this share of the most likely one's probability. Default: 0. */
  minP?: number
  /** Above 1 makes tokens of the prompt and of the answer less likely. Default: 1. */
  repetitionPenalty?: number
  /** No n-gram of this size twice, the prompt included; 0 is off. Default: 0. */
  noRepeatNgramSize?: number
  /** Token ids that are never generated. Default: none. */
  suppressTokens?: readonly number[]
  /** Texts that end the answer; the one that did stays in it. Default: none. */
  stopStrings?: readonly string[]
  /** The answer's start, given instead of generated; it belongs to the returned text. Default: none. */
  forcedPrefix?: string
  /** Continue the last message, the assistant's, instead of answering it. Default: false. */
  continueFinalMessage?: boolean
  /** Tokens that end a sequence; none with []. Default: the generation config's, else the tokenizer's. */
  eosTokenId?: number | readonly number[]
  /** Seeds the sampling: a prompt's answer does not depend on the batch it is in. Default: drawn anew at each call. */
  seed?: number
  /**
   * Sequences (beams counted) that are decoded together at most; others wait until one has ended. A prompt whose own sequences are more is
   * decoded alone. Default: 64.
   */
  maxBatchSize?: number
  /**
   * Tokens of which keys and values are held at most: of prompts, a shared beginning once, and of as many new tokens as may come. A prompt
   * that needs more by itself is decoded alone. Default: what fits into 768 MiB.
   */
  maxCacheTokens?: number
  /** Aborts between two tokens; the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

/** {@link GenerationConfig} with every default filled in; `maxNewTokens` is null where the context alone limits it. */
export interface ResolvedConfig
  extends Required<
    Omit<GenerationConfig, 'adapter' | 'maxNewTokens' | 'maxCacheTokens' | 'forcedPrefix' | 'eosTokenId' | 'seed' | 'signal'>
  > {
  adapter: string | null | undefined
  maxNewTokens: number | null
  maxLength: number | null
  /** null: what fits into the memory that is set aside for it */
  maxCacheTokens: number | null
  forcedPrefix: string
  eosTokenId: readonly number[]
  seed: number | null
  signal: AbortSignal | undefined
}

const tokenId = z.int().min(0)
const count = z.int().min(1)
const schema = z.strictObject({
  adapter: z.string().nullish(),
  maxNewTokens: count.optional(),
  minNewTokens: z.int().min(0).optional(),
  numBeams: count.optional(),
  numReturnSequences: count.optional(),
  lengthPenalty: z.number().optional(),
  earlyStopping: z.union([z.boolean(), z.literal('never')]).optional(),
  doSample: z.boolean().optional(),
  temperature: z.number().gt(0).optional(),
  topK: z.int().min(0).optional(),
  topP: z.number().gt(0).max(1).optional(),
  minP: z.number().min(0).max(1).optional(),
  repetitionPenalty: z.number().gt(0).optional(),
  noRepeatNgramSize: z.int().min(0).optional(),
  suppressTokens: z.array(tokenId).optional(),
  stopStrings: z.array(z.string().min(1)).optional(),
  forcedPrefix: z.string().optional(),
  continueFinalMessage: z.boolean().optional(),
  eosTokenId: z.union([tokenId, z.array(tokenId)]).optional(),
  seed: z.int().min(0).optional(),
  maxBatchSize: count.optional(),
  maxCacheTokens: count.optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

const DEFAULTS = {
  minNewTokens: 0,
  numBeams: 1,
  numReturnSequences: 1,
  lengthPenalty: 1,
  earlyStopping: false,
  doSample: false,
  temperature: 1,
  topK: 50,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  noRepeatNgramSize: 0,
  suppressTokens: [] as number[],
  stopStrings: [] as string[],
  forcedPrefix: '',
  continueFinalMessage: false,
  maxBatchSize: 64,
} as const

/** Where `generation_config.json` says what an option says. `max_length` counts the prompt too and has no option. */
const FILE_KEYS = {
  max_new_tokens: 'maxNewTokens',
  min_new_tokens: 'minNewTokens',
  num_beams: 'numBeams',
  num_return_sequences: 'numReturnSequences',
  length_penalty: 'lengthPenalty',
  early_stopping: 'earlyStopping',
  do_sample: 'doSample',
  temperature: 'temperature',
  top_k: 'topK',
  top_p: 'topP',
  min_p: 'minP',
  repetition_penalty: 'repetitionPenalty',
  no_repeat_ngram_size: 'noRepeatNgramSize',
  suppress_tokens: 'suppressTokens',
  stop_strings: 'stopStrings',
  eos_token_id: 'eosTokenId',
} as const

/** What a model says about generation: the content of its `generation_config.json`, and its tokenizer's end tokens. */
export interface GenerationDefaults {
  file?: Readonly<Record<string, unknown>> | null
  eosTokenIds: readonly number[]
}

/**
 * Checks the options of a call and fills in defaults. An option of the call wins over the file; `suppress_tokens` of the file
 * always holds, because those tokens have no meaning.
 * @throws ERR_INVALID_ARGUMENT for an unknown option, a value out of range, or options that exclude each other
 */
export function resolveConfig(options: GenerationConfig | undefined, model: GenerationDefaults): ResolvedConfig {
  const given = parseOptions(schema, options, 'GenerationConfig')
  const file = fromFile(model.file ?? {})
  const merged = { ...DEFAULTS, ...file.options, ...dropUndefined(given) }
  const {
    maxNewTokens = null,
    eosTokenId = model.eosTokenIds,
    seed = null,
    maxCacheTokens = null,
    adapter,
    signal,
    ...rest
  } = merged
  const config: ResolvedConfig = {
    ...rest,
    suppressTokens: [...new Set([...(file.options.suppressTokens ?? []), ...(given.suppressTokens ?? [])])],
    eosTokenId: typeof eosTokenId === 'number' ? [eosTokenId] : [...new Set(eosTokenId)],
    maxNewTokens,
    maxLength: given.maxNewTokens === undefined ? file.maxLength : null,
    maxCacheTokens,
    adapter,
    seed,
    signal,
  }
  checkCombination(config, given)
  return config
}

function checkCombination(config: ResolvedConfig, given: z.output<typeof schema>): void {
  const { numBeams, numReturnSequences, doSample, maxNewTokens, minNewTokens } = config
  if (numBeams > 1 && doSample) {
    // A file's doSample is a default for the plain case; asking for beams is asking for the deterministic search.
    if (given.doSample) throw invalidArgument('GenerationConfig: numBeams > 1 and doSample exclude each other')
    config.doSample = false
  }
  const available = config.doSample ? Number.POSITIVE_INFINITY : numBeams
  if (numReturnSequences > available) {
    throw invalidArgument(
      `GenerationConfig.numReturnSequences: expected at most numBeams (${numBeams}) without doSample, received ${numReturnSequences}`,
      { parameter: 'GenerationConfig.numReturnSequences' },
    )
  }
  if (maxNewTokens !== null && minNewTokens > maxNewTokens) {
    throw invalidArgument(
      `GenerationConfig.minNewTokens: expected at most maxNewTokens (${maxNewTokens}), received ${minNewTokens}`,
      { parameter: 'GenerationConfig.minNewTokens' },
    )
  }
}

/** The file's values that are usable; transformers writes null for what is not set. */
function fromFile(file: Readonly<Record<string, unknown>>) {
  const options: Record<string, unknown> = {}
  for (const [key, option] of Object.entries(FILE_KEYS)) {
    const value = file[key]
    if (value === null || value === undefined) continue
    if (schema.shape[option].safeParse(value).success) options[option] = value
  }
  const maxLength = file.max_length
  return {
    options: options as Omit<z.output<typeof schema>, 'adapter' | 'signal'>,
    maxLength: typeof maxLength === 'number' && Number.isInteger(maxLength) && maxLength > 0 ? maxLength : null,
  }
}

function dropUndefined<T extends object>(value: T): Partial<T> {
  return Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined)) as Partial<T>
}

/** New tokens for a prompt: what was asked for, or 512, as far as the context (and the file's `max_length`) leaves room. */
export function newTokensFor(config: ResolvedConfig, promptLength: number, contextLength: number): number {
  const room = contextLength - promptLength
  const fileRoom = (config.maxLength ?? Number.POSITIVE_INFINITY) - promptLength
  const wanted = config.maxNewTokens ?? (fileRoom > 0 ? Math.min(512, fileRoom) : 512)
  return Math.min(wanted, room)
}
