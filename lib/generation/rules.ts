import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { ResolvedConfig } from './config.js'
import { gatherRows, permuteRows } from './rows.js'

/** A column of the history that is no token: prompts are right-aligned, so that all rows grow at the same column. */
const NO_TOKEN = -1

/**
 * What changes logits (or log-probabilities) before a token is chosen, in transformers' order: repetition penalty, n-grams that would
 * be repeated, end tokens before `minNewTokens`, tokens that are never generated. The history it reads lives on the device.
 */
export class LogitsRules {
  readonly #device: Device
  readonly #config: ResolvedConfig
  readonly #width: number
  /** int32 [B, columns], [1], [B]; null where no rule reads it */
  #history: { tokens: Tensor; column: Tensor; lengths: Tensor } | null = null
  readonly #suppressed: Tensor | null
  readonly #suppressedAtFirst: Tensor | null

  /**
   * @param prompts the prompt of each row
   * @param vocabSize columns of the logits
   */
  constructor(device: Device, config: ResolvedConfig, prompts: readonly Int32Array[], maxSteps: number, vocabSize: number) {
    this.#device = device
    this.#config = config
    const ids = (list: readonly number[]) => {
      const known = [...new Set(list)].filter((id) => id < vocabSize)
      return known.length === 0 ? null : this.#int32(known)
    }
    this.#suppressed = ids(config.suppressTokens)
    this.#suppressedAtFirst = config.minNewTokens > 0 ? ids([...config.suppressTokens, ...config.eosTokenId]) : null
    this.#width = Math.max(...prompts.map((prompt) => prompt.length))
    if (config.repetitionPenalty !== 1 || config.noRepeatNgramSize > 0) this.#startHistory(prompts, maxSteps)
  }

  #int32(data: ArrayLike<number>, shape: readonly number[] = [data.length]): Tensor {
    return keep(Tensor.from(this.#device, Int32Array.from(data), shape, 'int32', 'cache'))
  }

  #startHistory(prompts: readonly Int32Array[], maxSteps: number): void {
    const columns = this.#width + maxSteps
    const tokens = new Int32Array(prompts.length * columns).fill(NO_TOKEN)
    for (const [row, prompt] of prompts.entries()) tokens.set(prompt, row * columns + this.#width - prompt.length)
    this.#history = {
      tokens: this.#int32(tokens, [prompts.length, columns]),
      column: this.#int32([this.#width]),
      lengths: this.#int32(prompts.map(() => this.#width)),
    }
  }

  /**
   * Applies the rules to `logits` [B, V] in place.
   * @param step new tokens that there are
   * @param stride `logits` belong to every stride-th row only (the prompts, before their beams part)
   */
  apply(logits: Tensor, step: number, stride = 1): void {
    const { repetitionPenalty, noRepeatNgramSize, minNewTokens } = this.#config
    const { ops } = this.#device
    if (this.#history) {
      const { tokens, lengths } = this.#history
      const rows = Array.from({ length: logits.shape[0]! }, (_, i) => i * stride)
      const read = stride === 1 ? { tokens, lengths } : gatherRows({ tokens, lengths }, rows)
      ops.logits_process(logits, read.tokens, read.lengths, repetitionPenalty, noRepeatNgramSize)
      if (stride !== 1) for (const tensor of Object.values(read)) tensor.dispose()
    }
    const suppressed = step < minNewTokens ? this.#suppressedAtFirst : this.#suppressed
    if (suppressed) ops.suppress_tokens(logits, suppressed)
  }

  /** Row i has chosen tokens[i] (int32 [B]). */
  append(tokens: Tensor): void {
    if (!this.#history) return
    this.#device.ops.append_column(this.#history.tokens, tokens, this.#history.column)
    this.#device.ops.increment(this.#history.column, 1)
    this.#device.ops.increment(this.#history.lengths, 1)
  }

  /** Whether `apply` does something else at this step than at the one before. */
  changesAt(step: number): boolean {
    return this.#suppressedAtFirst !== null && step === this.#config.minNewTokens
  }

  /** Queues: row i goes on as the former row parents[i]. */
  permute(parents: Tensor): void {
    if (this.#history) permuteRows(this.#history.tokens, parents)
  }

  /** Row i goes on as the former row parents[i]; there may be fewer rows afterwards. */
  reorder(parents: readonly number[]): void {
    if (!this.#history) return
    const { tokens, lengths, column } = this.#history
    this.#history = { ...gatherRows({ tokens, lengths }, parents), column }
    tokens.dispose()
    lengths.dispose()
  }

  dispose(): void {
    this.#suppressed?.dispose()
    this.#suppressedAtFirst?.dispose()
    for (const tensor of Object.values(this.#history ?? {})) tensor.dispose()
    this.#history = null
  }
}
