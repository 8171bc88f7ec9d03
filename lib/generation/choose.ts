import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { ResolvedConfig } from './config.js'
import { gatherRows } from './rows.js'

/** Chosen tokens int32 [B] and, where they were drawn, their log-probabilities float32 [B]. */
export interface Chosen {
  tokens: Tensor
  logProbs: Tensor | null
}

/** Chooses one token per row, on the device: the most likely one, or one drawn from the row's own random stream. */
export class TokenChooser {
  readonly #device: Device
  readonly #config: ResolvedConfig
  /** What was chosen last. */
  #chosen: Chosen
  /** int32 [B, 2] (seed, counter), the counters [B]; null where nothing is drawn */
  #random: { rng: Tensor; counters: Tensor } | null = null
  /** int32 [1]: the column in which counters stand */
  readonly #column: Tensor

  constructor(device: Device, config: ResolvedConfig, rows: number) {
    this.#device = device
    this.#config = config
    const of = (shape: readonly number[], dtype: 'int32' | 'float32') => keep(Tensor.zeros(device, shape, dtype, 'cache'))
    this.#column = keep(Tensor.from(device, Int32Array.of(1), [1], 'int32', 'cache'))
    this.#chosen = { tokens: of([rows], 'int32'), logProbs: config.doSample ? of([rows], 'float32') : null }
    if (config.doSample) this.#random = { rng: of([rows, 2], 'int32'), counters: of([rows], 'int32') }
  }

  get chosen(): Chosen {
    return this.#chosen
  }

  /**
   * Queues the first choice of sequences that begin, and puts them into their rows; in a scope.
   * @param logits float32 [rows.length, V]
   * @param seeds of their streams
   */
  start(rows: readonly number[], logits: Tensor, seeds: Int32Array): void {
    const of = (dtype: 'int32' | 'float32') => Tensor.empty(this.#device, [rows.length], dtype)
    const first: Chosen = { tokens: of('int32'), logProbs: this.#random ? of('float32') : null }
    if (this.#random) {
      const stream = (counter: number) => Int32Array.from(rows.flatMap((_, i) => [seeds[i]!, counter]))
      this.#sample(first, logits, Tensor.from(this.#device, stream(0), [rows.length, 2], 'int32'))
      for (const [i, row] of rows.entries()) {
        this.#random.rng.rows(row, 1).write(Int32Array.of(seeds[i]!, 1))
        this.#random.counters.rows(row, 1).write(Int32Array.of(1))
      }
    } else {
      this.#device.ops.argmax(first.tokens, null, logits)
    }
    for (const [i, row] of rows.entries()) {
      for (const name of ['tokens', 'logProbs'] as const) {
        const into = this.#chosen[name]
        if (into) this.#device.ops.copy(into.rows(row, 1), first[name]!.rows(i, 1))
      }
    }
  }

  /** Queues a choice by logits (float32 [B, V]). */
  choose(logits: Tensor): void {
    const { ops } = this.#device
    if (!this.#random) {
      ops.argmax(this.#chosen.tokens, null, logits)
      return
    }
    const { rng, counters } = this.#random
    this.#sample(this.#chosen, logits, rng)
    ops.increment(counters, 1)
    ops.append_column(rng, counters, this.#column)
  }

  #sample({ tokens, logProbs }: Chosen, logits: Tensor, rng: Tensor): void {
    const { temperature, topK, topP, minP } = this.#config
    this.#device.ops.sample(tokens, logProbs, logits, rng, temperature, topK, topP, minP)
  }

  /** Only these rows are left, in this order. */
  shrink(rows: readonly number[]): void {
    const { tokens, logProbs } = this.#chosen
    const kept = gatherRows({ tokens, ...(logProbs ? { logProbs } : {}), ...this.#random }, rows) as Record<string, Tensor>
    this.#disposeRows()
    this.#chosen = { tokens: kept.tokens!, logProbs: kept.logProbs ?? null }
    if (this.#random) this.#random = { rng: kept.rng!, counters: kept.counters! }
  }

  #disposeRows(): void {
    for (const tensor of [...Object.values(this.#chosen), ...Object.values(this.#random ?? {})]) tensor?.dispose()
  }

  dispose(): void {
    this.#disposeRows()
    this.#column.dispose()
  }
}

/**
 * The seed of a sequence's stream: of the call's seed, the prompt and the sequence's rank among those of its prompt, and of nothing
 * else, so that a prompt's answer is the same alone and in any batch.
 */
export function streamSeed(seed: number, prompt: Int32Array, rank: number): number {
  let hash = mix(mix(0x9e3779b9, seed >>> 0), Math.floor(seed / 2 ** 32) >>> 0)
  for (const id of prompt) hash = mix(hash, id)
  return mix(hash, rank) | 0
}

/** A step of MurmurHash3 (x86, 32 bits) with its finalizer, so that no prompt is too short to be mixed well. */
function mix(hash: number, value: number): number {
  let k = Math.imul(value, 0xcc9e2d51)
  k = Math.imul((k << 15) | (k >>> 17), 0x1b873593)
  let h = hash ^ k
  h = Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}
