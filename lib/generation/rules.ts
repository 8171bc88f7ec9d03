import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { ResolvedConfig } from './config.js'
import { gatherRows, permuteRows } from './rows.js'

/** What a decoder's rows need room for. */
export interface RulesShape {
  rows: number
  /** Tokens of the longest prompt with its answer. */
  longest: number
  vocabSize: number
}

/**
 * What changes logits (or log-probabilities) before a token is chosen, in transformers' order: repetition penalty, n-grams that would
 * be repeated, end tokens before `minNewTokens`, tokens that are never generated. The history it reads lives on the device.
 */
export class LogitsRules {
  readonly #device: Device
  readonly #config: ResolvedConfig
  readonly #longest: number
  /** int32 [B, longest], and the tokens that are in each row [B]; null where no rule reads it */
  #history: { tokens: Tensor; lengths: Tensor } | null = null
  readonly #suppressed: Tensor | null
  readonly #suppressedAtFirst: Tensor | null
  /** Steps that each row has made without a sequence. */
  #idle: number[]
  /** Rows that may not end yet: runs of [first, count]. */
  #young: [number, number][] = []

  constructor(device: Device, config: ResolvedConfig, { rows, longest, vocabSize }: RulesShape) {
    this.#device = device
    this.#config = config
    this.#longest = longest
    this.#idle = new Array<number>(rows).fill(0)
    const ids = (list: readonly number[]) => {
      const known = [...new Set(list)].filter((id) => id < vocabSize)
      return known.length === 0 ? null : this.#int32(known)
    }
    this.#suppressed = ids(config.suppressTokens)
    this.#suppressedAtFirst = config.minNewTokens > 0 ? ids(config.eosTokenId) : null
    if (config.repetitionPenalty === 1 && config.noRepeatNgramSize === 0) return
    this.#history = {
      tokens: this.#int32(new Int32Array(rows * longest), [rows, longest]),
      lengths: this.#int32(new Int32Array(rows)),
    }
  }

  #int32(data: ArrayLike<number>, shape: readonly number[] = [data.length]): Tensor {
    return keep(Tensor.from(this.#device, Int32Array.from(data), shape, 'int32', 'cache'))
  }

  /** A sequence begins in a row. */
  start(row: number, prompt: Int32Array): void {
    if (!this.#history) return
    const line = new Int32Array(this.#longest)
    line.set(prompt)
    for (const [tensor, data] of [
      [this.#history.tokens, line],
      [this.#history.lengths, Int32Array.of(prompt.length)],
    ] as const) {
      const part = tensor.rows(row, 1)
      part.write(data)
      part.dispose()
    }
  }

  /** Applies the rules to the logits after prompts [prompts, V], in place and in a scope; no row is needed for that. */
  applyToPrompts(logits: Tensor, prompts: readonly Int32Array[]): void {
    if (this.#history) {
      const longest = Math.max(...prompts.map(({ length }) => length))
      const tokens = new Int32Array(prompts.length * longest)
      for (const [i, prompt] of prompts.entries()) tokens.set(prompt, i * longest)
      const lengths = Int32Array.from(prompts, ({ length }) => length)
      this.#readHistory(
        logits,
        Tensor.from(this.#device, tokens, [prompts.length, longest], 'int32'),
        Tensor.from(this.#device, lengths, [lengths.length], 'int32'),
      )
    }
    if (this.#suppressedAtFirst) this.#device.ops.suppress_tokens(logits, this.#suppressedAtFirst)
    if (this.#suppressed) this.#device.ops.suppress_tokens(logits, this.#suppressed)
  }

  /** Queues the rules for the logits of all rows [B, V], in place and in a scope. */
  apply(logits: Tensor): void {
    if (this.#history) this.#readHistory(logits, this.#history.tokens, this.#history.lengths)
    for (const [first, count] of this.#young) {
      this.#device.ops.suppress_tokens(logits.rows(first, count), this.#suppressedAtFirst!)
    }
    if (this.#suppressed) this.#device.ops.suppress_tokens(logits, this.#suppressed)
  }

  #readHistory(logits: Tensor, tokens: Tensor, lengths: Tensor): void {
    const { repetitionPenalty, noRepeatNgramSize } = this.#config
    this.#device.ops.logits_process(logits, tokens, lengths, repetitionPenalty, noRepeatNgramSize)
  }

  /** Queues: row i has chosen tokens[i] (int32 [B]). */
  append(tokens: Tensor): void {
    if (!this.#history) return
    this.#device.ops.append_column(this.#history.tokens, tokens, this.#history.lengths)
    this.#device.ops.increment(this.#history.lengths, 1)
  }

  /**
   * To be called before each step.
   * @param newTokens of a row before the one that the step chooses; null for a row without a sequence
   * @returns whether `apply` does something else than before
   */
  prepare(rows: number, newTokens: (row: number) => number | null): boolean {
    if (this.#history) this.#rewindIdle(rows, newTokens)
    if (!this.#suppressedAtFirst) return false
    const young: [number, number][] = []
    for (let row = 0; row < rows; row++) {
      const count = newTokens(row)
      if (count === null || count >= this.#config.minNewTokens) continue
      const last = young.at(-1)
      if (last && last[0] + last[1] === row) last[1]++
      else young.push([row, 1])
    }
    const changed = JSON.stringify(young) !== JSON.stringify(this.#young)
    this.#young = young
    return changed
  }

  /** A row without a sequence chooses and keeps tokens like the others: its history begins anew before it is full. */
  #rewindIdle(rows: number, newTokens: (row: number) => number | null): void {
    for (let row = 0; row < rows; row++) {
      if (newTokens(row) !== null) {
        this.#idle[row] = 0
      } else if (this.#idle[row]!++ % this.#longest === 0) {
        const length = this.#history!.lengths.rows(row, 1)
        length.write(Int32Array.of(0))
        length.dispose()
      }
    }
  }

  /** Queues: row i goes on as the former row parents[i] of the same prompt. */
  permute(parents: Tensor): void {
    if (this.#history) permuteRows(this.#history.tokens, parents)
  }

  /** Only these rows are left, in this order. */
  shrink(rows: readonly number[]): void {
    this.#idle = rows.map((row) => this.#idle[row]!)
    if (!this.#history) return
    const former = this.#history
    this.#history = gatherRows(former, rows)
    former.tokens.dispose()
    former.lengths.dispose()
  }

  dispose(): void {
    this.#suppressed?.dispose()
    this.#suppressedAtFirst?.dispose()
    for (const tensor of Object.values(this.#history ?? {})) tensor.dispose()
    this.#history = null
  }
}
