import type { ModelShape } from '../models/causal-lm.js'
import type { Device } from '../tensor/device.js'
import type { DType } from '../tensor/dtype.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

/**
 * Keys and values of a group of sequences: those of the prompts in blocks that sequences share, those of generated tokens in slots
 * of (step, row). A sequence finds its prompt through its row of the block table and its generated tokens through its row of
 * `ancestors`; reordering beams permutes these rows and moves no key or value.
 *
 * Blocks hold one token here, so prompts share exactly the tokens that their prefix tree shares.
 */
export class KeyValueCache {
  readonly #device: Device
  readonly #shape: ModelShape
  readonly #promptSlots: number
  readonly #rows: number
  readonly #prompt: KeyValues[] = []
  #steps: KeyValues[] = []
  #capacity: number

  /**
   * @param promptSlots tokens of all prompts of the group, shared ones once
   * @param rows sequences of the group
   * @param capacity steps to make room for at first
   */
  constructor(device: Device, shape: ModelShape, promptSlots: number, rows: number, capacity: number) {
    this.#device = device
    this.#shape = shape
    this.#promptSlots = promptSlots
    this.#rows = rows
    this.#capacity = capacity
  }

  /** Steps there is room for. */
  get capacity(): number {
    return this.#capacity
  }

  /** Slots of one step; that of `row` at `step` is step * slotsPerStep + row. */
  get slotsPerStep(): number {
    return this.#rows
  }

  /** The prompts' keys and values of a layer [promptSlots, 1, Hkv, D]; allocated in the dtype of the first ones written. */
  promptOf(layer: number, dtype: DType): KeyValues {
    this.#prompt[layer] ??= this.#allocate([this.#promptSlots, 1], dtype)
    return this.#prompt[layer]
  }

  /** The generated tokens' keys and values of a layer [capacity, rows, Hkv, D]. */
  stepsOf(layer: number, dtype: DType): KeyValues {
    this.#steps[layer] ??= this.#allocate([this.#capacity, this.#rows], dtype)
    return this.#steps[layer]
  }

  /** Makes room for `capacity` steps and keeps what is there. */
  grow(capacity: number): void {
    const former = this.#steps
    const steps = this.#capacity
    this.#capacity = capacity
    this.#steps = former.map(({ k, v }) => {
      const grown = this.#allocate([capacity, this.#rows], k.dtype)
      for (const [to, from] of [
        [grown.k, k],
        [grown.v, v],
      ] as const) {
        const part = to.rows(0, steps)
        this.#device.ops.copy(part, from)
        part.dispose()
        from.dispose()
      }
      return grown
    })
  }

  dispose(): void {
    for (const { k, v } of [...this.#prompt, ...this.#steps]) {
      k.dispose()
      v.dispose()
    }
    this.#prompt.length = 0
    this.#steps.length = 0
  }

  #allocate(dimensions: readonly number[], dtype: DType): KeyValues {
    const shape = [...dimensions, this.#shape.numKeyValueHeads, this.#shape.headDim]
    const one = () => keep(Tensor.empty(this.#device, shape, dtype, 'cache'))
    return { k: one(), v: one() }
  }
}

export interface KeyValues {
  k: Tensor
  v: Tensor
}

/** Bytes of one token's keys and values over all layers. */
export function bytesPerToken(shape: ModelShape, bytesPerElement = 4): number {
  return 2 * shape.numLayers * shape.numKeyValueHeads * shape.headDim * bytesPerElement
}
