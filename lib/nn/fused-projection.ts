import { gatherRows, reshape } from '../autograd/index.js'
import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

const CACHED_LENGTHS = 8

/**
 * Splits the output of a fused projection, [T, parts · N], into its parts [T, N]. Seen as [T · parts, N], part p is every row
 * parts · t + p. The row numbers are kept for the lengths used last, so that a recorded decode step uploads nothing.
 */
export class FusedProjection {
  readonly #parts: number
  readonly #rows = new WeakMap<Device, Map<number, Tensor[]>>()

  constructor(parts: number) {
    this.#parts = parts
  }

  split(x: Tensor): Tensor[] {
    const [length, width] = x.shape as [number, number]
    const flat = reshape(x, [length * this.#parts, width / this.#parts])
    return this.#rowsFor(x.device, length).map((rows) => gatherRows(flat, rows))
  }

  #rowsFor(device: Device, length: number): Tensor[] {
    const cache = this.#rows.get(device) ?? new Map<number, Tensor[]>()
    this.#rows.set(device, cache)
    const rows =
      cache.get(length) ??
      Array.from({ length: this.#parts }, (_, part) => {
        const numbers = Int32Array.from({ length }, (_, t) => this.#parts * t + part)
        return keep(Tensor.from(device, numbers, [length], 'int32', 'other'))
      })
    cache.delete(length)
    cache.set(length, rows)
    if (cache.size > CACHED_LENGTHS) {
      const [oldest, tensors] = cache.entries().next().value!
      cache.delete(oldest)
      for (const tensor of tensors) tensor.dispose()
    }
    return rows
  }
}
