import { noGrad } from '../autograd/tape.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type PromptCache, StepCache } from './cache.js'
import { gatherRows, permuteRows } from './rows.js'

/** Steps to make room for at first; doubled when they are used up. */
const FIRST_CAPACITY = 32

export interface DecoderInput {
  network: CausalLM
  device: Device
  adapter: Adapter | null
  cache: PromptCache
  /** Sequences that are decoded together. */
  rows: number
  /** Tokens of the longest prompt. */
  longestPrompt: number
  /** New tokens that a sequence has at most. */
  maxSteps: number
}

/** Where a row stands, as the host knows it. */
interface Row {
  /** Tokens of its prompt; 0 while no sequence has the row. */
  length: number
  /** Steps that were queued for it. */
  steps: number
  /** Its column of the step cache, which it keeps when others leave. */
  column: number
}

/**
 * The device's side of sequences that are decoded together, a row each: what changes from token to token, all of it in tensors, so that a
 * step can be replayed. Rows begin and end independently; one without a sequence is computed for nothing, as cheaply as can be.
 */
export class Decoder {
  readonly #input: DecoderInput
  readonly #steps: StepCache
  readonly #scale: number
  #rows: Row[]
  /** int32: [B, longest prompt], [B, capacity], [B] each */
  #blockTable: Tensor
  #ancestors: Tensor
  #columns: Tensor
  /** int32 [B]: tokens of the prompt, position, slot and step of the token that is computed next, and the steps there are with it. */
  #counters: Record<'lengths' | 'positions' | 'slots' | 'step' | 'steps', Tensor>

  constructor(input: DecoderInput) {
    const { network, device, rows, longestPrompt, maxSteps } = input
    this.#input = input
    this.#scale = 1 / Math.sqrt(network.shape.headDim)
    this.#steps = new StepCache(device, network.shape, rows, Math.min(maxSteps, FIRST_CAPACITY))
    this.#rows = Array.from({ length: rows }, (_, column) => ({ length: 0, steps: 0, column }))
    this.#blockTable = this.#int32(new Int32Array(rows * longestPrompt), [rows, longestPrompt])
    this.#ancestors = this.#int32(new Int32Array(rows * this.#steps.capacity), [rows, this.#steps.capacity])
    this.#columns = this.#int32(this.#rows.map(({ column }) => column))
    const zeros = () => this.#int32(new Int32Array(rows))
    this.#counters = { lengths: zeros(), positions: zeros(), slots: zeros(), step: zeros(), steps: zeros() }
    this.#writeCounters()
  }

  /** Rows that are computed. */
  get rows(): number {
    return this.#rows.length
  }

  /** New tokens that a row has before what the step that was queued last chooses; null for one without a sequence. */
  stepsOf(row: number): number | null {
    const { length, steps } = this.#rows[row]!
    return length === 0 ? null : steps
  }

  #int32(data: ArrayLike<number>, shape: readonly number[] = [data.length]): Tensor {
    return keep(Tensor.from(this.#input.device, Int32Array.from(data), shape, 'int32', 'cache'))
  }

  /** The rows' sequences are other ones now: the prompt's blocks for a sequence that begins, null for none. */
  assign(changes: ReadonlyMap<number, Int32Array | null>): void {
    for (const [row, slots] of changes) {
      const state = this.#rows[row]!
      state.length = slots?.length ?? 0
      state.steps = 0
      if (!slots) continue
      const line = new Int32Array(this.#input.longestPrompt)
      line.set(slots)
      const part = this.#blockTable.rows(row, 1)
      part.write(line)
      part.dispose()
    }
    this.#writeCounters()
  }

  #writeCounters(): void {
    const { columns } = this.#steps
    const of = (value: (row: Row) => number) => Int32Array.from(this.#rows, value)
    this.#counters.lengths.write(of(({ length }) => length))
    this.#counters.positions.write(of(({ length, steps }) => length + steps))
    this.#counters.slots.write(of(({ steps, column }) => steps * columns + column))
    this.#counters.step.write(of(({ steps }) => steps))
    this.#counters.steps.write(of(({ steps }) => steps + 1))
  }

  /** Queues one step: the logits after `tokens` (int32 [B]), float32 [B, V], in the current scope. */
  forward(tokens: Tensor): Tensor {
    const { network, adapter, device } = this.#input
    const { ops } = device
    const { positions, slots, step, steps } = this.#counters
    ops.append_column(this.#ancestors, this.#columns, step)
    const logits = noGrad(() => {
      const hidden = network.hidden({
        inputIds: tokens,
        positions,
        attend: (layer, q, k, v) => this.#attend(layer, q, k, v),
        outputRows: null,
        adapter,
      })
      return network.logits(hidden, adapter)
    })
    ops.increment(positions, 1)
    ops.increment(slots, this.#steps.columns)
    ops.increment(step, 1)
    ops.increment(steps, 1)
    return logits
  }

  #attend(layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    const { ops } = q.device
    const prompt = this.#input.cache.of(layer, k.dtype)
    const own = this.#steps.of(layer, k.dtype)
    const { slots, lengths, steps } = this.#counters
    ops.kv_write(own.k, own.v, k, v, slots)
    const o = Tensor.empty(q.device, q.shape, q.dtype)
    ops.attention_decode(o, q, prompt.k, prompt.v, this.#blockTable, lengths, own.k, own.v, this.#ancestors, steps, this.#scale)
    return o
  }

  /**
   * To be awaited before each step, queued or replayed: counts it and makes room for it.
   * @returns whether the caches are other tensors now
   */
  async nextStep(): Promise<boolean> {
    const { capacity } = this.#steps
    const full = this.#rows.filter(({ steps }) => steps >= capacity)
    const idle = full.filter(({ length }) => length === 0)
    for (const row of idle) row.steps = 0
    if (idle.length > 0) this.#writeCounters()
    const grows = full.length > idle.length
    if (grows) await this.#grow(Math.min(this.#input.maxSteps, 2 * capacity))
    for (const row of this.#rows) row.steps++
    return grows
  }

  async #grow(capacity: number): Promise<void> {
    const former = this.#steps.capacity
    const ancestors = (await this.#ancestors.data()) as Int32Array
    const wider = new Int32Array(this.rows * capacity)
    for (let row = 0; row < this.rows; row++) {
      wider.set(ancestors.subarray(row * former, (row + 1) * former), row * capacity)
    }
    this.#steps.grow(capacity)
    this.#ancestors.dispose()
    this.#ancestors = this.#int32(wider, [this.rows, capacity])
  }

  /** Queues: row i goes on as the former row parents[i] of the same prompt. */
  permute(parents: Tensor): void {
    permuteRows(this.#ancestors, parents)
  }

  /** Only these rows are left, in this order. All that depends on rows are other tensors then. */
  shrink(rows: readonly number[]): void {
    const former = {
      blockTable: this.#blockTable,
      ancestors: this.#ancestors,
      columns: this.#columns,
      ...this.#counters,
    }
    const { blockTable, ancestors, columns, ...counters } = gatherRows(former, rows)
    for (const tensor of Object.values(former)) tensor.dispose()
    this.#blockTable = blockTable
    this.#ancestors = ancestors
    this.#columns = columns
    this.#counters = counters
    this.#rows = rows.map((row) => this.#rows[row]!)
  }

  dispose(): void {
    this.#steps.dispose()
    for (const tensor of [this.#blockTable, this.#ancestors, this.#columns, ...Object.values(this.#counters)]) tensor.dispose()
  }
}
