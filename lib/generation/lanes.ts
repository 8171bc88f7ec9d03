import { noGrad } from '../autograd/tape.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { PromptCache } from './cache.js'
import { Decoder } from './decoder.js'
import { prefill } from './prefill.js'
import { type AdmittedPrompt, PromptQueue, trieSize } from './prompt-queue.js'

/** Bounds the activations of a pass over prompts. */
const MAX_PREFILL_TOKENS = 2048

/** Lanes that are free may make up this share before others are let in, or before there are fewer: each has its price. */
const FREE_SHARE = 1 / 4

/** What sequences are decoded with, and the bounds on how many at once. */
export interface LanesInput {
  network: CausalLM
  device: Device
  adapter: Adapter | null
  signal: AbortSignal | undefined
  /** Sequences of a prompt: beams, or what is drawn. */
  width: number
  /** Sequences that are decoded together at most. */
  maxBatchSize: number
  /** Tokens of which keys and values are held at most. */
  maxCacheTokens: number
}

/** A prompt with what is to become of it. */
export interface Job {
  readonly inputIds: Int32Array
  /** New tokens at most. */
  readonly maxNewTokens: number
}

interface Lane<J> {
  job: J
  prompt: AdmittedPrompt
}

/**
 * Continuous batching: a lane is the rows of one prompt, and when all its sequences have ended, the next prompt that waits gets it. Lane i
 * has the decoder's rows from i * width on.
 */
export class Lanes<J extends Job> {
  readonly decoder: Decoder
  readonly width: number
  readonly #input: LanesInput
  readonly #jobs: readonly J[]
  readonly #cache: PromptCache
  readonly #queue: PromptQueue
  #lanes: (Lane<J> | null)[]
  #passes = 0

  constructor(input: LanesInput, jobs: readonly J[]) {
    const { device, network, width } = input
    const prompts = jobs.map(({ inputIds }) => inputIds)
    const { lanes, blocks, maxSteps, longestPrompt } = planMemory(input, jobs)
    this.#input = input
    this.#jobs = jobs
    this.width = width
    this.#cache = new PromptCache(device, network.shape, blocks)
    this.#queue = new PromptQueue(prompts, this.#cache)
    this.#lanes = new Array<null>(lanes).fill(null)
    this.decoder = new Decoder({ ...input, cache: this.#cache, rows: lanes * width, maxSteps, longestPrompt })
  }

  /** The rows of the decoder. */
  get rows(): number {
    return this.#lanes.length * this.width
  }

  /** The jobs that have a lane, with its number. */
  get live(): { lane: number; job: J }[] {
    return this.#lanes.flatMap((lane, i) => (lane ? [{ lane: i, job: lane.job }] : []))
  }

  /** The job that has a lane. */
  jobOf(lane: number): J {
    return this.#lanes[lane]!.job
  }

  /** Tokens of the longest prompt with its answer. */
  get longest(): number {
    return Math.max(...this.#jobs.map(({ inputIds, maxNewTokens }) => inputIds.length + maxNewTokens))
  }

  get #free(): number[] {
    return this.#lanes.flatMap((lane, i) => (lane ? [] : [i]))
  }

  /** Whether jobs wait, and enough lanes are free for some. */
  get isDue(): boolean {
    const free = this.#free.length
    return this.#queue.waiting > 0 && (free === this.#lanes.length || free >= this.#lanes.length * FREE_SHARE)
  }

  /**
   * Computes prompts that wait, every beginning that they share once, as far as there are lanes and room in the cache.
   * @param begin called for each pass, in a scope: with the lanes of its prompts, and the logits after them, float32 [lanes, V]
   */
  async admit(begin: (lanes: number[], logits: Tensor) => void): Promise<void> {
    while (true) {
      const free = this.#free
      const prompts = this.#queue.admit(free.length, MAX_PREFILL_TOKENS)
      if (prompts.length === 0) return
      if (this.#passes++ > 0) await this.#passed()
      const lanes = prompts.map((prompt, i) => {
        this.#lanes[free[i]!] = { prompt, job: this.#jobs[prompt.index]! }
        return free[i]!
      })
      withCallSite('generate', () =>
        noGrad(() =>
          scope(() => {
            begin(lanes, this.#prefill(prompts))
          }),
        ),
      )
      this.#assign(lanes)
    }
  }

  #prefill(prompts: readonly AdmittedPrompt[]): Tensor {
    const { network, device, adapter } = this.#input
    const wanted = prompts.map(({ inputIds }) => [inputIds.length - 1])
    const { hidden, rows } = prefill({ network, device, adapter, cache: this.#cache }, prompts, wanted)
    const logits = network.logits(hidden, adapter)
    return spreadRows(
      logits,
      rows.map(([row]) => row!),
    )
  }

  /** Waits for a pass over prompts, so that a long row of them can be aborted. */
  async #passed(): Promise<void> {
    await this.#input.device.settled()
    this.#input.signal?.throwIfAborted()
  }

  /** These jobs have ended: their lanes are free, and what of their prompts nobody else needs. */
  finish(lanes: readonly number[]): void {
    for (const lane of lanes) {
      this.#queue.release(this.#lanes[lane]!.prompt)
      this.#lanes[lane] = null
    }
    if (lanes.length > 0) this.#assign(lanes)
  }

  #assign(lanes: readonly number[]): void {
    const changes = lanes.flatMap((lane) => {
      const slots = this.#lanes[lane]?.prompt.slots ?? null
      return this.rowsOf(lane).map((row) => [row, slots] as const)
    })
    this.decoder.assign(new Map(changes))
  }

  rowsOf(lane: number): number[] {
    return Array.from({ length: this.width }, (_, i) => lane * this.width + i)
  }

  /**
   * Leaves out free lanes where nothing waits for them and they are many.
   * @returns the rows that are left, by their former numbers; null when nothing has changed
   */
  shrink(): number[] | null {
    const live = this.live
    const free = this.#lanes.length - live.length
    if (this.#queue.waiting > 0 || live.length === 0 || free < this.#lanes.length * FREE_SHARE) return null
    const rows = live.flatMap(({ lane }) => this.rowsOf(lane))
    this.#lanes = live.map(({ lane }) => this.#lanes[lane]!)
    this.decoder.shrink(rows)
    return rows
  }

  dispose(): void {
    this.decoder.dispose()
    this.#cache.dispose()
  }
}

/** How many lanes there are, and blocks for prompts, so that all fits into `maxCacheTokens`; one prompt that does not stands alone. */
function planMemory({ width, maxBatchSize, maxCacheTokens }: LanesInput, jobs: readonly Job[]) {
  const maxSteps = Math.max(...jobs.map(({ maxNewTokens }) => maxNewTokens))
  const longestPrompt = Math.max(...jobs.map(({ inputIds }) => inputIds.length))
  const distinct = trieSize(jobs.map(({ inputIds }) => inputIds))
  const forPrompts = Math.min(distinct, Math.max(longestPrompt, Math.floor(maxCacheTokens / 2)))
  const affordable = Math.floor((maxCacheTokens - forPrompts) / (maxSteps * width))
  const lanes = Math.max(1, Math.min(jobs.length, Math.floor(maxBatchSize / width), affordable))
  const left = maxCacheTokens - lanes * maxSteps * width
  return { lanes, blocks: Math.min(distinct, Math.max(longestPrompt, left)), maxSteps, longestPrompt }
}

/** x[rows] in the current scope, or x itself where that is the same. */
export function spreadRows(x: Tensor, rows: readonly number[]): Tensor {
  if (rows.length === x.shape[0] && rows.every((row, i) => row === i)) return x
  const y = Tensor.empty(x.device, [rows.length, ...x.shape.slice(1)], x.dtype)
  x.device.ops.gather_rows(y, x, Tensor.from(x.device, Int32Array.from(rows), [rows.length], 'int32'))
  return y
}
