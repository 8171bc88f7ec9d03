import { invalidArgument, QuantuneError } from '../errors.js'
import type { Model } from '../model/model.js'
import { type GenerationConfig, resolveConfig } from './config.js'
import { needTokenizer, type Prompt, tokenizerOf } from './prompt.js'
import { type Call, encodeRequests, type Generation, generateAll, growSequences, limitsOf } from './requests.js'
import { type Score, type ScoreOptions, scoreContinuations } from './score.js'
import { TextStream } from './text.js'

/** A token of a stream and the text that it completes; '' while a character is incomplete. */
export interface StreamedToken {
  text: string
  tokenId: number
}

/**
 * Generates text with a model, greedily, by sampling, or by beam search. Calls may overlap with each other and with training on the
 * same model; each uses the adapter that was chosen when it was called. A batch may have any size: beginnings that prompts share are
 * computed once, and where a sequence ends, a prompt that waits takes its place.
 */
export class Generator implements AsyncDisposable {
  readonly model: Model
  #disposed = false

  constructor(model: Model) {
    if (typeof model?.resolveAdapter !== 'function') throw invalidArgument('Generator: expected a Model')
    this.model = model
  }

  /**
   * Generates an answer for a prompt, or for each of several.
   * @throws ERR_INVALID_ARGUMENT, ERR_CONTEXT_LENGTH for a prompt that leaves no room, ERR_DISPOSED; `signal.reason` when aborted
   */
  generate(prompt: Prompt, options?: GenerationConfig): Promise<Generation>
  generate(prompts: readonly Prompt[], options?: GenerationConfig): Promise<Generation[]>
  async generate(prompt: Prompt | readonly Prompt[], options?: GenerationConfig): Promise<Generation | Generation[]> {
    const call = this.#begin(options)
    const single = !Array.isArray(prompt)
    const prompts = (single ? [prompt] : prompt) as readonly Prompt[]
    if (prompts.length === 0) throw invalidArgument('generate: there are no prompts')
    const finish = this.model.beginCall('generate')
    try {
      const requests = await encodeRequests(call, prompts)
      const results = await generateAll(call, requests)
      return single ? results[0]! : results
    } finally {
      finish()
    }
  }

  /**
   * Generates an answer token by token; `text` joined over all tokens is the answer. Leaving the loop cancels; a stream that is neither
   * read on nor left (`return()`) is a call in flight, which `Model.dispose` waits for. The forced start, if any, comes with the first token.
   * @throws as `generate`; ERR_INVALID_ARGUMENT for beams or several sequences
   */
  stream(prompt: Prompt, options?: GenerationConfig): AsyncGenerator<StreamedToken, void, undefined> {
    const call = this.#begin(options)
    const { numBeams, numReturnSequences } = call.config
    if (numBeams > 1 || numReturnSequences > 1) {
      throw invalidArgument('stream: one sequence can be streamed; numBeams and numReturnSequences must be 1')
    }
    return this.#stream(call, prompt)
  }

  async *#stream(call: Call, prompt: Prompt): AsyncGenerator<StreamedToken, void, undefined> {
    const finish = this.model.beginCall('generate')
    try {
      // An adapter may have been merged between the call and the first token.
      this.model.resolveAdapter(call.adapter?.name ?? null)
      const requests = await encodeRequests(call, [prompt])
      const { jobs, growths } = growSequences(call, requests)
      const text = new TextStream(needTokenizer(call.tokenizer), requests[0]!.context)
      let start = call.config.forcedPrefix
      for await (const [growth] of growths) {
        const completed = text.push(growth!.tokenId)
        const rest = jobs[0]!.sequences[0]!.finishReason === null ? '' : text.end()
        yield { text: start + completed + rest, tokenId: growth!.tokenId }
        start = ''
      }
    } finally {
      finish()
    }
  }

  /**
   * Log-probabilities of continuations, for multiple choice and cloze tests: one score per continuation, or a list per prompt.
   * Beginnings that are shared are computed once.
   * @throws as `generate`
   */
  score(prompt: Prompt, continuations: readonly string[], options?: ScoreOptions): Promise<Score[]>
  score(prompts: readonly Prompt[], continuations: readonly (readonly string[])[], options?: ScoreOptions): Promise<Score[][]>
  async score(
    prompt: Prompt | readonly Prompt[],
    continuations: readonly string[] | readonly (readonly string[])[],
    options: ScoreOptions = {},
  ): Promise<Score[] | Score[][]> {
    const { adapter, ...call } = this.#begin(options)
    const single = !Array.isArray(prompt)
    const prompts = (single ? [prompt] : prompt) as readonly Prompt[]
    const lists = (single ? [continuations] : continuations) as readonly (readonly string[])[]
    const finish = this.model.beginCall('score')
    try {
      const scores = await scoreContinuations({ ...call, adapter, limits: limitsOf({ ...call, adapter }) }, prompts, lists)
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

  /** Checks the options and takes hold of all that a call needs. */
  #begin(options: GenerationConfig | undefined): Call {
    if (this.#disposed) throw new QuantuneError('ERR_DISPOSED', 'the generator was disposed of')
    const { generationConfig, network, device, config: modelConfig } = this.model
    const tokenizer = tokenizerOf(this.model)
    const ends = modelConfig.eos_token_id as number | number[] | null | undefined
    const config = resolveConfig(options, {
      file: generationConfig,
      eosTokenIds: ends === null || ends === undefined ? (tokenizer?.eosTokenIds ?? []) : [ends].flat(),
    })
    config.signal?.throwIfAborted()
    return { config, adapter: this.model.resolveAdapter(config.adapter), network, device, tokenizer }
  }
}
