import { drawSeed } from '../env.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import type { Model } from '../model/model.js'
import type { Adapter } from '../peft/adapter.js'
import { searchBeams } from './beam-loop.js'
import { bytesPerToken } from './cache.js'
import { streamSeed } from './choose.js'
import { type GenerationConfig, newTokensFor, type ResolvedConfig, resolveConfig } from './config.js'
import type { GroupInput } from './group.js'
import { type Group, planGroups } from './plan.js'
import { encodePrompt, needTokenizer, type Prompt, tokenizerOf } from './prompt.js'
import { type Score, type ScoreOptions, scoreContinuations } from './score.js'
import { EndConditions, type FinishReason, type Request, Sequence } from './sequence.js'
import { decodeAfter, StopStrings, TextStream } from './text.js'
import { decodeTokens } from './token-loop.js'

/** One answer. */
export interface GeneratedSequence {
  /** The answer's text with its forced start, without special tokens. */
  text: string
  /** The new tokens, the end token included. */
  tokenIds: number[]
  /** Beams: the hypothesis' score as in transformers. Sampling: the sum of the tokens' log-probabilities. */
  score?: number
  finishReason: FinishReason
}

export interface Generation extends GeneratedSequence {
  /** Further sequences (`numReturnSequences`), best first. */
  alternatives?: GeneratedSequence[]
}

/** A token of a stream and the text that it completes; '' while a character is incomplete. */
export interface StreamedToken {
  text: string
  tokenId: number
}

const MAX_ROWS = 64
const MAX_PROMPT_TOKENS = 8192
/** Bounds the activations of a prefill. */
const MAX_PREFILL_TOKENS = 2048
/** Keys and values that a group's new tokens may take if all sequences grow to their full length. */
const MAX_STEP_BYTES = 512 * 2 ** 20

/**
 * Generates text with a model, greedily, by sampling, or by beam search. Calls may overlap with each other and with training on the
 * same model; each uses the adapter that was chosen when it was called. A batch of any size is divided into groups, in which
 * beginnings that prompts share are computed once.
 */
export class Generator {
  readonly model: Model
  #disposed = false

  constructor(model: Model) {
    this.model = model
  }

  /**
   * Generates an answer for a prompt, or for each of several.
   * @throws ERR_INVALID_ARGUMENT, ERR_CONTEXT_LENGTH for a prompt that leaves no room, ERR_DISPOSED; `signal.reason` when aborted
   */
  generate(prompt: Prompt, options?: GenerationConfig): Promise<Generation>
  generate(prompts: readonly Prompt[], options?: GenerationConfig): Promise<Generation[]>
  async generate(prompt: Prompt | readonly Prompt[], options?: GenerationConfig): Promise<Generation | Generation[]> {
    const config = this.#configure(options)
    const adapter = this.model.resolveAdapter(config.adapter)
    const single = !Array.isArray(prompt)
    const prompts = (single ? [prompt] : prompt) as readonly Prompt[]
    if (prompts.length === 0) throw invalidArgument('generate: there are no prompts')
    const finish = this.model.beginCall('generate')
    try {
      const requests = await this.#encode(prompts, config, adapter)
      const results = new Array<Generation>(prompts.length)
      for (const group of this.#plan(requests, config)) {
        config.signal?.throwIfAborted()
        const members = group.chunks.flat()
        const generations = await this.#generateGroup(group, requests, config, adapter)
        for (const [i, index] of members.entries()) results[index] = generations[i]!
      }
      return single ? results[0]! : results
    } finally {
      finish()
    }
  }

  /**
   * Generates an answer token by token; `text` joined over all tokens is the answer. Leaving the loop cancels. The forced start, if
   * any, comes with the first token.
   * @throws as `generate`; ERR_INVALID_ARGUMENT for beams or several sequences
   */
  async *stream(prompt: Prompt, options?: GenerationConfig): AsyncGenerator<StreamedToken, void, undefined> {
    const config = this.#configure(options)
    if (config.numBeams > 1 || config.numReturnSequences > 1) {
      throw invalidArgument('stream: one sequence can be streamed; numBeams and numReturnSequences must be 1')
    }
    const adapter = this.model.resolveAdapter(config.adapter)
    const finish = this.model.beginCall('generate')
    try {
      const [request] = await this.#encode([prompt], config, adapter)
      const sequence = new Sequence(request!)
      const text = new TextStream(needTokenizer(tokenizerOf(this.model)), request!.context)
      let start = config.forcedPrefix
      const input = this.#input([[request!]], config, adapter)
      for await (const growths of decodeTokens(
        input,
        [sequence],
        this.#seeds([request!], config),
        config,
        this.#ends(config),
      )) {
        for (const { tokenId } of growths) {
          const completed = text.push(tokenId)
          yield { text: start + completed + (sequence.finishReason === null ? '' : text.end()), tokenId }
          start = ''
        }
      }
    } finally {
      finish()
    }
  }

  /**
   * Log-probabilities of continuations, for multiple choice and cloze tests: one score per continuation, or a list per prompt.
   * Beginnings that are shared are computed once.
   */
  score(prompt: Prompt, continuations: readonly string[], options?: ScoreOptions): Promise<Score[]>
  score(prompts: readonly Prompt[], continuations: readonly (readonly string[])[], options?: ScoreOptions): Promise<Score[][]>
  async score(
    prompt: Prompt | readonly Prompt[],
    continuations: readonly string[] | readonly (readonly string[])[],
    options: ScoreOptions = {},
  ): Promise<Score[] | Score[][]> {
    this.#check()
    const single = !Array.isArray(prompt)
    const prompts = (single ? [prompt] : prompt) as readonly Prompt[]
    const lists = (single ? [continuations] : continuations) as readonly (readonly string[])[]
    const adapter = this.model.resolveAdapter(options.adapter)
    const finish = this.model.beginCall('score')
    try {
      const limits = this.#limits(adapter)
      const scores = await scoreContinuations(this.model, adapter, prompts, lists, limits, options.signal)
      return single ? scores[0]! : scores
    } finally {
      finish()
    }
  }

  /** Ends this generator; the model stays. */
  async dispose(): Promise<void> {
    this.#disposed = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #check(): void {
    if (this.#disposed) throw new QuantuneError('ERR_DISPOSED', 'the generator was disposed')
  }

  #configure(options: GenerationConfig | undefined): ResolvedConfig {
    this.#check()
    const { generationConfig, config } = this.model
    const ends = config.eos_token_id as number | number[] | null | undefined
    const config_ = resolveConfig(options, {
      file: generationConfig,
      eosTokenIds: ends === null || ends === undefined ? (tokenizerOf(this.model)?.eosTokenIds ?? []) : [ends].flat(),
    })
    config_.signal?.throwIfAborted()
    return config_
  }

  #limits(adapter: Adapter | null) {
    const { shape } = this.model.network
    const rows = adapter?.tokenRows?.tokenIds ?? []
    const vocabSize = Math.max(shape.vocabSize, ...rows.map((id) => id + 1))
    return { contextLength: shape.maxPositionEmbeddings, vocabSize }
  }

  async #encode(prompts: readonly Prompt[], config: ResolvedConfig, adapter: Adapter | null): Promise<Request[]> {
    const limits = this.#limits(adapter)
    const tokenizer = tokenizerOf(this.model)
    const requests: Request[] = []
    for (const prompt of prompts) {
      // Encoding is the one long thing that runs here: let others in between.
      if (requests.length % 8 === 7) await new Promise<void>((resolve) => setImmediate(resolve))
      const encoded = encodePrompt(tokenizer, prompt, config, limits)
      requests.push({ ...encoded, maxNewTokens: newTokensFor(config, encoded.inputIds.length, limits.contextLength) })
    }
    return requests
  }

  #plan(requests: readonly Request[], config: ResolvedConfig): Group[] {
    const rowsPerPrompt = rowsPerPromptOf(config)
    const steps = Math.max(...requests.map(({ maxNewTokens }) => maxNewTokens))
    const affordable = Math.floor(MAX_STEP_BYTES / (steps * bytesPerToken(this.model.network.shape)))
    return planGroups(
      requests.map(({ inputIds }) => inputIds),
      rowsPerPrompt,
      { rows: Math.min(MAX_ROWS, affordable), promptTokens: MAX_PROMPT_TOKENS, prefillTokens: MAX_PREFILL_TOKENS },
    )
  }

  #input(chunks: readonly (readonly Request[])[], config: ResolvedConfig, adapter: Adapter | null): GroupInput {
    const { network, device } = this.model
    return {
      network,
      device,
      adapter,
      chunks: chunks.map((requests) => requests.map(({ inputIds }) => inputIds)),
      rowsPerPrompt: rowsPerPromptOf(config),
      maxSteps: Math.max(...chunks.flat().map(({ maxNewTokens }) => maxNewTokens)),
      signal: config.signal,
    }
  }

  #ends(config: ResolvedConfig): EndConditions {
    const { stopStrings, eosTokenId } = config
    const stops = stopStrings.length > 0 ? new StopStrings(needTokenizer(tokenizerOf(this.model)), stopStrings) : null
    return new EndConditions(eosTokenId, stops)
  }

  #seeds(requests: readonly Request[], config: ResolvedConfig): Int32Array {
    const seeds = requests.flatMap(({ inputIds }) =>
      Array.from({ length: rowsPerPromptOf(config) }, (_, rank) => streamSeed(config.seed ?? drawSeed(), inputIds, rank)),
    )
    return Int32Array.from(seeds)
  }

  async #generateGroup(
    group: Group,
    all: readonly Request[],
    config: ResolvedConfig,
    adapter: Adapter | null,
  ): Promise<Generation[]> {
    const chunks = group.chunks.map((chunk) => chunk.map((index) => all[index]!))
    const requests = chunks.flat()
    const input = this.#input(chunks, config, adapter)
    const ends = this.#ends(config)
    if (config.numBeams > 1) {
      const hypotheses = await searchBeams(input, requests, config, ends)
      return requests.map((request, i) =>
        this.#collect(
          hypotheses[i]!.slice(0, config.numReturnSequences).map(({ tokenIds, score, stopped }) =>
            this.#sequence(request, tokenIds, stopped ? 'stop' : 'length', score),
          ),
        ),
      )
    }
    const sequences = requests.flatMap((request) => Array.from({ length: input.rowsPerPrompt }, () => new Sequence(request)))
    for await (const _ of decodeTokens(input, sequences, this.#seeds(requests, config), config, ends));
    const finished = sequences.map(({ request, tokenIds, finishReason, logProb }) =>
      this.#sequence(request, tokenIds, finishReason!, config.doSample ? logProb : undefined),
    )
    return requests.map((_, i) => {
      const own = finished.slice(i * input.rowsPerPrompt, (i + 1) * input.rowsPerPrompt)
      return this.#collect(own.sort((a, b) => (b.score ?? 0) - (a.score ?? 0)))
    })
  }

  #sequence(request: Request, tokenIds: number[], finishReason: FinishReason, score?: number): GeneratedSequence {
    const tokenizer = tokenizerOf(this.model)
    const text = tokenizer ? request.forcedPrefix + decodeAfter(tokenizer, request.context, tokenIds) : ''
    return { text, tokenIds, ...(score === undefined ? {} : { score }), finishReason }
  }

  #collect([best, ...alternatives]: GeneratedSequence[]): Generation {
    return alternatives.length > 0 ? { ...best!, alternatives } : best!
  }
}

function rowsPerPromptOf({ numBeams, numReturnSequences }: ResolvedConfig): number {
  return Math.max(numBeams, numReturnSequences)
}
