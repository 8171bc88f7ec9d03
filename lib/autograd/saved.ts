import { keep } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'

/** A tensor that a backward function will read: kept, or computed again from what is kept anyway. */
export interface SavedTensor {
  get(): Tensor
  dispose(): void
}

export function kept(tensor: Tensor): SavedTensor {
  tensor.retain()
  return { get: () => tensor, dispose: () => tensor.dispose() }
}

/**
 * An output that costs little to compute again (a norm, an activation function): its readers in the backward pass share one
 * recomputed copy, made for the first and dropped after the last.
 */
export class Recipe {
  readonly #compute: () => Tensor
  #copy: Tensor | null = null
  #readers = 0

  constructor(compute: () => Tensor) {
    this.#compute = compute
  }

  reader(): SavedTensor {
    this.#readers++
    return {
      get: () => {
        this.#copy ??= keep(this.#compute())
        return this.#copy
      },
      dispose: () => {
        if (--this.#readers > 0) return
        this.#copy?.dispose()
        this.#copy = null
      },
    }
  }
}
