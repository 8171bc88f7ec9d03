import { noGrad } from '../autograd/tape.js'
import { Batch } from '../data/batch.js'
import type { CausalLM } from '../models/causal-lm.js'
import { attendSegments } from '../nn/attention.js'
import type { Adapter } from '../peft/adapter.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { KeyValueCache } from './cache.js'
import { gatherRows, permuteRows } from './rows.js'

/** Steps to make room for at first; doubled when they are used up. */
const FIRST_CAPACITY = 32

/** What a decoder is made for: prompts in passes, each prompt with its sequences side by side. */
export interface DecoderInput {
  network: CausalLM
  device: Device
  adapter: Adapter | null
  /** Prompts of each pass. */
  chunks: readonly (readonly Int32Array[])[]
  rowsPerPrompt: number
  maxSteps: number
  signal: AbortSignal | undefined
}

/**
 * The device's side of a group of sequences: caches, and per row what changes from token to token, all of it in tensors. Rows are in
 * the order of the prompts, those of a prompt side by side.
 */
export class GroupDecoder {
  readonly #input: DecoderInput
  readonly #batches: Batch[]
  readonly #cache: KeyValueCache
  readonly #scale: number
  /** int32: [B, longest prompt], [B], [B, capacity], [B], [B] */
  #blockTable: Tensor
  #lengths: Tensor
  #ancestors: Tensor
  #positions: Tensor
  #slots: Tensor
  #rowIndex: Tensor
  /** int32 [1]: the step that is computed, and the number of steps there are with it. */
  readonly #step: Tensor
  readonly #steps: Tensor
  #rows: number
  #done = 0

  constructor(input: DecoderInput) {
    const { device, network, chunks, rowsPerPrompt, maxSteps } = input
    this.#input = input
    this.#batches = chunks.map((prompts) => Batch.pack(prompts.map((inputIds) => ({ inputIds }))))
    const slots = this.#batches.reduce((sum, batch) => sum + batch.numTokens, 0)
    const lengths = chunks.flat().flatMap((prompt) => new Array<number>(rowsPerPrompt).fill(prompt.length))
    this.#rows = lengths.length
    this.#scale = 1 / Math.sqrt(network.shape.headDim)
    this.#cache = new KeyValueCache(device, network.shape, slots, this.#rows, Math.min(maxSteps, FIRST_CAPACITY))
    const longest = Math.max(...lengths)
    this.#blockTable = this.#int32(this.#promptSlots(longest), [this.#rows, longest])
    this.#lengths = this.#int32(lengths)
    this.#positions = this.#int32(lengths)
    this.#ancestors = this.#int32(new Int32Array(this.#rows * this.#cache.capacity), [this.#rows, this.#cache.capacity])
    this.#rowIndex = this.#int32(lengths.map((_, row) => row))
    this.#slots = this.#int32(lengths.map((_, row) => row))
    this.#step = this.#int32([0])
    this.#steps = this.#int32([1])
  }

  /** Sequences that are still computed. */
  get rows(): number {
    return this.#rows
  }

  #int32(data: ArrayLike<number>, shape: readonly number[] = [data.length]): Tensor {
    return keep(Tensor.from(this.#input.device, Int32Array.from(data), shape, 'int32', 'cache'))
  }

  /** Per row the slots of its prompt: the rows of its pass's stream, behind those of the passes before. */
  #promptSlots(longest: number): Int32Array {
    const { rowsPerPrompt } = this.#input
    const table = new Int32Array(this.#rows * longest)
    let row = 0
    let base = 0
    for (const batch of this.#batches) {
      for (const stream of batch.sampleRows) {
        const slots = stream.map((index) => base + index)
        for (let i = 0; i < rowsPerPrompt; i++) table.set(slots, longest * row++)
      }
      base += batch.numTokens
    }
    return table
  }

  /**
   * Computes the prompts, every shared prefix once, and fills the cache.
   * @param between awaited between two passes
   * @returns the logits after each prompt, float32 [prompts, V]; the caller releases them
   */
  async prefill(between: () => Promise<void>): Promise<Tensor> {
    const { network, adapter } = this.#input
    const prompts = this.#batches.reduce((sum, batch) => sum + batch.numSamples, 0)
    let hidden: Tensor | null = null
    try {
      let base = 0
      let first = 0
      for (const [index, batch] of this.#batches.entries()) {
        if (index > 0) await between()
        hidden = withCallSite('generate', () =>
          noGrad(() => scope(() => this.#prefillPass(batch, base, first, prompts, hidden))),
        )
        if (index === 0) keep(hidden)
        base += batch.numTokens
        first += batch.numSamples
      }
      return keep(noGrad(() => scope(() => network.logits(hidden!, adapter))))
    } finally {
      hidden?.dispose()
    }
  }

  /** Computes one pass and puts the last rows of its prompts into `hidden` [prompts, hiddenSize], made by the first pass. */
  #prefillPass(batch: Batch, base: number, first: number, prompts: number, hidden: Tensor | null): Tensor {
    const { network, device, adapter } = this.#input
    const int32 = (data: Int32Array) => Tensor.from(device, data, [data.length], 'int32')
    const lastRows = batch.sampleRows.map((rows) => rows.at(-1)!)
    const outputRows = Int32Array.from(new Set(lastRows)).sort()
    const slots = int32(Int32Array.from({ length: batch.numTokens }, (_, i) => base + i))
    const rowsTensor = int32(outputRows)
    const segments = attendSegments(int32(batch.end), rowsTensor)
    const result = network.hidden({
      inputIds: int32(batch.inputIds),
      positions: int32(batch.positions),
      attend: (layer, q, k, v, rows) => {
        const cache = this.#cache.promptOf(layer, k.dtype)
        device.ops.kv_write(cache.k, cache.v, k, v, slots)
        return segments(layer, q, k, v, rows)
      },
      outputRows: rowsTensor,
      adapter,
    })
    const into = hidden ?? Tensor.empty(device, [prompts, result.shape[1]!], result.dtype)
    const order = Int32Array.from(lastRows, (row) => outputRows.indexOf(row))
    device.ops.gather_rows(into.rows(first, order.length), result, int32(order))
    return into
  }

  /** Queues one step: the logits after `tokens` (int32 [B]), float32 [B, V], in the current scope. */
  forward(tokens: Tensor): Tensor {
    const { network, adapter, device } = this.#input
    const { ops } = device
    ops.append_column(this.#ancestors, this.#rowIndex, this.#step)
    const logits = noGrad(() => {
      const hidden = network.hidden({
        inputIds: tokens,
        positions: this.#positions,
        attend: (layer, q, k, v) => this.#attend(layer, q, k, v),
        outputRows: null,
        adapter,
      })
      return network.logits(hidden, adapter)
    })
    ops.increment(this.#positions, 1)
    ops.increment(this.#slots, this.#cache.slotsPerStep)
    ops.increment(this.#step, 1)
    ops.increment(this.#steps, 1)
    return logits
  }

  #attend(layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    const { ops } = this.#input.device
    const prompt = this.#cache.promptOf(layer, k.dtype)
    const steps = this.#cache.stepsOf(layer, k.dtype)
    ops.kv_write(steps.k, steps.v, k, v, this.#slots)
    const o = Tensor.empty(q.device, q.shape, q.dtype)
    ops.attention_decode(
      o,
      q,
      prompt.k,
      prompt.v,
      this.#blockTable,
      this.#lengths,
      steps.k,
      steps.v,
      this.#ancestors,
      this.#steps,
      this.#scale,
    )
    return o
  }

  /**
   * To be awaited before each step, queued or replayed: counts it and makes room for it.
   * @returns whether the caches are other tensors now
   */
  async nextStep(): Promise<boolean> {
    const capacity = this.#cache.capacity
    if (this.#done++ < capacity) return false
    const grown = Math.min(this.#input.maxSteps, 2 * capacity)
    const former = (await this.#ancestors.data()) as Int32Array
    const wider = new Int32Array(this.#rows * grown)
    for (let row = 0; row < this.#rows; row++) {
      wider.set(former.subarray(row * capacity, (row + 1) * capacity), row * grown)
    }
    this.#cache.grow(grown)
    this.#ancestors.dispose()
    this.#ancestors = this.#int32(wider, [this.#rows, grown])
    return true
  }

  /** Queues: row i goes on as the former row parents[i] of the same prompt. */
  permute(parents: Tensor): void {
    permuteRows(this.#ancestors, parents)
  }

  /** Row i goes on as the former row parents[i]; there may be fewer rows afterwards. All that depends on rows are other tensors then. */
  reorder(parents: readonly number[]): void {
    const former = {
      ancestors: this.#ancestors,
      blockTable: this.#blockTable,
      lengths: this.#lengths,
      positions: this.#positions,
    }
    const { ancestors, blockTable, lengths, positions } = gatherRows(former, parents)
    for (const tensor of Object.values(former)) tensor.dispose()
    this.#ancestors = ancestors
    this.#blockTable = blockTable
    this.#lengths = lengths
    this.#positions = positions
    if (parents.length === this.#rows) return
    this.#rows = parents.length
    this.#rowIndex.dispose()
    this.#slots.dispose()
    this.#rowIndex = this.#int32(parents.map((_, row) => row))
    this.#slots = this.#int32(parents.map((_, row) => this.#done * this.#cache.slotsPerStep + row))
  }

  dispose(): void {
    this.#cache.dispose()
    for (const tensor of [this.#blockTable, this.#lengths, this.#ancestors, this.#positions]) tensor.dispose()
    for (const tensor of [this.#slots, this.#rowIndex, this.#step, this.#steps]) tensor.dispose()
  }
}
