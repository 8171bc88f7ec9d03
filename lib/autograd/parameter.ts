import { invalidArgument } from '../errors.js'
import { isQuantized } from '../tensor/dtype.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

/**
 * A named weight. Frozen ones keep their file's type, or are quantized; trainable ones are float32, the masters that the optimizer
 * updates. Owns its value and its gradient.
 */
export class Parameter {
  readonly name: string
  #value: Tensor
  #gradient: Tensor | null = null
  #requiresGrad = false
  /** The value with zero rows behind it, of which the value itself is a view. */
  #extended: Tensor | null = null

  constructor(name: string, value: Tensor, options: { requiresGrad?: boolean } = {}) {
    this.name = name
    this.#value = keep(value)
    this.requiresGrad = options.requiresGrad ?? false
  }

  get shape(): readonly number[] {
    return this.#value.shape
  }

  get dtype(): Tensor['dtype'] {
    return this.#value.dtype
  }

  get value(): Tensor {
    return this.#value
  }

  /** Replaces the value (merging, loading); the old one is given back to whoever asked, who disposes of it. */
  exchange(value: Tensor): Tensor {
    if (value.shape.join() !== this.shape.join()) {
      throw invalidArgument(`${this.name} has shape [${this.shape.join(', ')}]; got [${value.shape.join(', ')}]`)
    }
    const old = this.#value
    this.#value = keep(value)
    this.#extended?.dispose()
    this.#extended = null
    return old
  }

  /**
   * The value with zero rows behind it, [count, …] (or the value itself, if it has as many): one buffer with the value, which moves
   * there the first time, so both see every update.
   * @returns a tensor of the current scope
   */
  withRows(count: number): Tensor {
    const rows = this.shape[0]!
    if (count <= rows) return this.#value
    if (!this.#extended || this.#extended.shape[0]! < count) {
      const { device } = this.#value
      const extended = scope(() => keep(Tensor.zeros(device, [count, ...this.shape.slice(1)], this.dtype, 'weights')))
      const value = scope(() => keep(extended.rows(0, rows)))
      device.ops.copy(value, this.#value)
      this.exchange(value).dispose()
      this.#extended = extended
    }
    return this.#extended.rows(0, count)
  }

  get requiresGrad(): boolean {
    return this.#requiresGrad
  }

  /** Making a 16-bit weight trainable converts it to float32; a quantized one cannot be trained. */
  set requiresGrad(trainable: boolean) {
    if (trainable && this.dtype !== 'float32') {
      if (this.dtype !== 'bfloat16' && this.dtype !== 'float16') {
        throw invalidArgument(`${this.name} is ${this.dtype}: only floating-point parameters can be trained`)
      }
      const master = scope(() => {
        const copy = Tensor.empty(this.#value.device, this.shape, 'float32', 'weights')
        copy.device.ops.copy(copy, this.#value)
        return copy
      })
      this.exchange(master).dispose()
    }
    if (!trainable) this.dropGradient()
    this.#requiresGrad = trainable
  }

  /** The accumulated gradient, float32; null until the first backward pass reached this parameter. */
  get gradient(): Tensor | null {
    return this.#gradient
  }

  /** The gradient to accumulate into: created, zero-filled, on first use. */
  gradientBuffer(): Tensor {
    this.#gradient ??= keep(Tensor.zeros(this.#value.device, this.shape, 'float32', 'gradients'))
    return this.#gradient
  }

  zeroGrad(): void {
    if (this.#gradient) this.#gradient.device.ops.fill(this.#gradient, 0)
  }

  /** A copy of the values; a quantized weight arrives dequantized. */
  async data(): Promise<Float32Array> {
    const value = this.#value
    if (!isQuantized(value.dtype)) return (await value.data()) as Float32Array
    const dense = Tensor.empty(value.device, value.shape, 'float32', 'other')
    value.device.ops.dequantize(dense, value)
    const data = dense.data()
    dense.dispose()
    return (await data) as Float32Array
  }

  /** A copy of the gradient, or null where there is none yet. */
  async grad(): Promise<Float32Array | null> {
    return this.#gradient ? ((await this.#gradient.data()) as Float32Array) : null
  }

  dispose(): void {
    this.#value.dispose()
    this.#extended?.dispose()
    this.#extended = null
    this.dropGradient()
  }

  /** Frees the gradient; the next backward pass starts a new one. */
  dropGradient(): void {
    this.#gradient?.dispose()
    this.#gradient = null
  }
}
