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
  /** int32 [B, 2] (seed, counter), the counters [B], and the column they stand in [1] */
  #random: { rng: Tensor; counters: Tensor; column: Tensor } | null = null

  /** @param seeds of the rows' streams; not needed when nothing is drawn */
  constructor(device: Device, config: ResolvedConfig, seeds: Int32Array) {
    this.#device = device
    this.#config = config
    if (!config.doSample) return
    const rng = new Int32Array(2 * seeds.length)
    for (const [row, seed] of seeds.entries()) rng[2 * row] = seed
    const int32 = (data: Int32Array, shape: readonly number[]) => keep(Tensor.from(device, data, shape, 'int32', 'cache'))
    this.#random = {
      rng: int32(rng, [seeds.length, 2]),
      counters: int32(new Int32Array(seeds.length), [seeds.length]),
      column: int32(Int32Array.of(1), [1]),
    }
  }

  /** Room for what is chosen for `rows` rows; the caller releases it. */
  room(rows: number): Chosen {
    const of = (dtype: 'int32' | 'float32') => keep(Tensor.empty(this.#device, [rows], dtype, 'cache'))
    return { tokens: of('int32'), logProbs: this.#random ? of('float32') : null }
  }

  /** Queues a choice by logits (float32 [B, V]) into `chosen`. */
  choose({ tokens, logProbs }: Chosen, logits: Tensor): void {
    const { ops } = this.#device
    if (!this.#random) {
      ops.argmax(tokens, null, logits)
      return
    }
    const { temperature, topK, topP, minP } = this.#config
    const { rng, counters, column } = this.#random
    ops.sample(tokens, logProbs, logits, rng, temperature, topK, topP, minP)
    ops.increment(counters, 1)
    ops.append_column(rng, counters, column)
  }

  /** Row i goes on as the former row parents[i]. */
  reorder(parents: readonly number[]): void {
    if (!this.#random) return
    const { rng, counters, column } = this.#random
    this.#random = { ...gatherRows({ rng, counters }, parents), column }
    rng.dispose()
    counters.dispose()
  }

  dispose(): void {
    for (const tensor of Object.values(this.#random ?? {})) tensor.dispose()
    this.#random = null
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
