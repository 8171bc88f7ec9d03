import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

/**
 * The gradient of one tensor on its way down: a buffer that several holders may share until one of them writes (copy on write), or
 * one number for all elements (the root of the pass, which so costs no operation).
 */
export class Gradient {
  readonly like: Tensor
  readonly uniform: number | null
  #tensor: Tensor | null
  readonly #holders: { count: number }

  private constructor(like: Tensor, tensor: Tensor | null, uniform: number | null, holders = { count: 0 }) {
    this.like = like
    this.#tensor = tensor
    this.uniform = uniform
    this.#holders = holders
    holders.count++
  }

  /** Takes over one reference of `tensor`, which has the shape and dtype of `like`. */
  static of(like: Tensor, tensor: Tensor): Gradient {
    return new Gradient(like, tensor, null)
  }

  static uniform(like: Tensor, value: number): Gradient {
    return new Gradient(like, null, value)
  }

  /** The values; those of a uniform gradient are written out on first use. */
  get tensor(): Tensor {
    if (!this.#tensor) {
      this.#tensor = keep(Tensor.empty(this.like.device, this.like.shape, this.like.dtype))
      this.like.device.ops.fill(this.#tensor, this.uniform ?? 0)
    }
    return this.#tensor
  }

  /** Nobody else holds the buffer: it may be overwritten. */
  get exclusive(): boolean {
    return this.uniform === null && this.#holders.count === 1
  }

  /** Another holder of the same values, as the gradient of `like` (same number of elements). */
  share(like: Tensor = this.like): Gradient {
    if (this.uniform !== null) return Gradient.uniform(like, this.uniform)
    const same = like.shape.length === this.tensor.shape.length && like.shape.every((size, i) => size === this.tensor.shape[i])
    const tensor = same ? this.tensor.retain() : keep(this.tensor.view([...like.shape]))
    return new Gradient(like, tensor, null, this.#holders)
  }

  release(): void {
    this.#holders.count--
    this.#tensor?.dispose()
    this.#tensor = null
  }
}

/** The gradients of activations during one backward pass; each is dropped as soon as it has been used. */
export class Gradients {
  readonly #of = new Map<Tensor, Gradient>()

  take(x: Tensor): Gradient | undefined {
    const gradient = this.#of.get(x)
    this.#of.delete(x)
    return gradient
  }

  /** A buffer for an operation that writes x's gradient (accumulate 0) or adds to what is there already (accumulate 1). */
  target(x: Tensor): { dx: Tensor; accumulate: 0 | 1 } {
    const existing = this.#of.get(x)
    if (existing?.exclusive) return { dx: existing.tensor, accumulate: 1 }
    const dx = keep(Tensor.empty(x.device, x.shape, x.dtype))
    if (existing) {
      x.device.ops.copy(dx, existing.tensor)
      existing.release()
    }
    this.#of.set(x, Gradient.of(x, dx))
    return { dx, accumulate: existing ? 1 : 0 }
  }

  /** Adds a gradient that others may still hold; it is passed on without a copy where x has none yet. */
  add(x: Tensor, dy: Gradient): void {
    const existing = this.#of.get(x)
    if (!existing) {
      this.#of.set(x, dy.share(x))
    } else if (existing.uniform !== null && dy.uniform !== null) {
      this.#of.set(x, Gradient.uniform(x, existing.uniform + dy.uniform))
    } else {
      const shared = dy.share(x)
      const { dx } = this.target(x)
      x.device.ops.add(dx, dx, shared.tensor, 1)
      shared.release()
    }
  }

  addUniform(x: Tensor, value: number): void {
    const gradient = Gradient.uniform(x, value)
    this.add(x, gradient)
    gradient.release()
  }

  /** Adds a tensor that the caller has just made for this purpose alone. */
  give(x: Tensor, dx: Tensor): void {
    const gradient = Gradient.of(x, keep(dx))
    this.add(x, gradient)
    gradient.release()
  }

  release(): void {
    for (const gradient of this.#of.values()) gradient.release()
    this.#of.clear()
  }
}
