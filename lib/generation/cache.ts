import type { ModelShape } from '../models/causal-lm.js'
import type { Device } from '../tensor/device.js'
import type { DType } from '../tensor/dtype.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

export interface KeyValues {
  k: Tensor
  v: Tensor
}

/**
 * Keys and values of prompts, in blocks that sequences share; a block is free again when the last that refers to it lets go. Blocks hold
 * one token here, so prompts share exactly the tokens that their trie shares.
 */
export class PromptCache {
  readonly #device: Device
  readonly #shape: ModelShape
  readonly #layers: KeyValues[] = []
  readonly #references: Int32Array
  readonly #computed: Uint8Array
  /** Free blocks, the next one last. */
  readonly #free: number[]

  /** @param blocks tokens that there is room for */
  constructor(device: Device, shape: ModelShape, blocks: number) {
    this.#device = device
    this.#shape = shape
    this.#references = new Int32Array(blocks)
    this.#computed = new Uint8Array(blocks)
    this.#free = Array.from({ length: blocks }, (_, i) => blocks - 1 - i)
  }

  /** Blocks that nothing refers to. */
  get free(): number {
    return this.#free.length
  }

  /** Blocks for tokens that are to be computed, with one reference each. */
  take(count: number): Int32Array {
    const blocks = Int32Array.from({ length: count }, () => this.#free.pop()!)
    for (const block of blocks) {
      this.#references[block] = 1
      this.#computed[block] = 0
    }
    return blocks
  }

  retain(blocks: Int32Array): void {
    for (const block of blocks) this.#references[block]!++
  }

  release(blocks: Int32Array): void {
    for (const block of blocks) if (--this.#references[block]! === 0) this.#free.push(block)
  }

  /** Whether the computation of the block's keys and values is queued. */
  isComputed(block: number): boolean {
    return this.#computed[block] === 1
  }

  setComputed(block: number): void {
    this.#computed[block] = 1
  }

  /** The keys and values of a layer [blocks, 1, Hkv, D]; allocated in the dtype of the first ones written. */
  of(layer: number, dtype: DType): KeyValues {
    this.#layers[layer] ??= allocate(this.#device, this.#shape, [this.#references.length, 1], dtype)
    return this.#layers[layer]
  }

  dispose(): void {
    disposeAll(this.#layers)
  }
}

/**
 * Keys and values of generated tokens, in slots of (step, column). A sequence finds its tokens through its row of an ancestor table;
 * reordering beams permutes these rows and moves no key or value.
 */
export class StepCache {
  /** Sequences that have a column each; that of `column` at `step` is slot step * columns + column. */
  readonly columns: number
  readonly #device: Device
  readonly #shape: ModelShape
  #layers: KeyValues[] = []
  #capacity: number

  /** @param capacity steps to make room for at first */
  constructor(device: Device, shape: ModelShape, columns: number, capacity: number) {
    this.columns = columns
    this.#device = device
    this.#shape = shape
    this.#capacity = capacity
  }

  /** Steps there is room for. */
  get capacity(): number {
    return this.#capacity
  }

  /** The keys and values of a layer [capacity, columns, Hkv, D]. */
  of(layer: number, dtype: DType): KeyValues {
    this.#layers[layer] ??= allocate(this.#device, this.#shape, [this.#capacity, this.columns], dtype)
    return this.#layers[layer]
  }

  /** Makes room for `capacity` steps and keeps what is there. */
  grow(capacity: number): void {
    const steps = this.#capacity
    this.#capacity = capacity
    this.#layers = this.#layers.map((former) => {
      const grown = allocate(this.#device, this.#shape, [capacity, this.columns], former.k.dtype)
      for (const name of ['k', 'v'] as const) {
        const part = grown[name].rows(0, steps)
        this.#device.ops.copy(part, former[name])
        part.dispose()
        former[name].dispose()
      }
      return grown
    })
  }

  dispose(): void {
    disposeAll(this.#layers)
  }
}

function allocate(device: Device, shape: ModelShape, dimensions: readonly number[], dtype: DType): KeyValues {
  const all = [...dimensions, shape.numKeyValueHeads, shape.headDim]
  const one = () => keep(Tensor.empty(device, all, dtype, 'cache'))
  return { k: one(), v: one() }
}

function disposeAll(layers: KeyValues[]): void {
  for (const { k, v } of layers) {
    k.dispose()
    v.dispose()
  }
  layers.length = 0
}

/** Bytes of one token's keys and values over all layers. */
export function bytesPerToken(shape: ModelShape, bytesPerElement = 4): number {
  return 2 * shape.numLayers * shape.numKeyValueHeads * shape.headDim * bytesPerElement
}
