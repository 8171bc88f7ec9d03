import type { Device } from '../tensor/device.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

/** The rope types that are implemented, with their parameters under Hugging Face's meaning. */
export type RopeConfig =
  | { type: 'default'; theta: number }
  | { type: 'linear'; theta: number; factor: number }
  | {
      type: 'llama3'
      theta: number
      factor: number
      lowFreqFactor: number
      highFreqFactor: number
      originalMaxPositionEmbeddings: number
    }

const { fround } = Math

/** θ^(-2i/D) for i < D/2, scaled as the type says; each step rounded to float32, as transformers computes it. [D/2] */
export function inverseFrequencies(rope: RopeConfig, headDim: number): Float32Array {
  const base = Float32Array.from({ length: headDim / 2 }, (_, i) => 1 / fround(rope.theta ** fround((2 * i) / headDim)))
  switch (rope.type) {
    case 'default':
      return base
    case 'linear':
      return base.map((frequency) => frequency / rope.factor)
    case 'llama3':
      return base.map((frequency) => llama3Frequency(frequency, rope))
  }
}

/** Long wavelengths are stretched by the factor, short ones kept, those between interpolated (Llama 3.1's release). */
function llama3Frequency(frequency: number, rope: Extract<RopeConfig, { type: 'llama3' }>): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings: context } = rope
  const wavelength = fround((2 * Math.PI) / frequency)
  if (wavelength > context / lowFreqFactor) return frequency / factor
  if (wavelength < context / highFreqFactor) return frequency
  const smooth = fround(fround(fround(context / wavelength) - lowFreqFactor) / (highFreqFactor - lowFreqFactor))
  return fround(fround(fround(1 - smooth) * frequency) / factor) + fround(smooth * frequency)
}

/** Cosines and sines for positions: int32 [T] → float32 [T, D]. The frequencies are uploaded once per device. */
export class RopeTables {
  readonly #frequencies: Float32Array
  readonly #uploaded = new WeakMap<Device, Tensor>()

  constructor(rope: RopeConfig, headDim: number) {
    this.#frequencies = inverseFrequencies(rope, headDim)
  }

  at(positions: Tensor): Tensor {
    const { device } = positions
    const inverse = this.#frequenciesOn(device)
    const table = Tensor.empty(device, [positions.shape[0]!, 2 * this.#frequencies.length], 'float32')
    device.ops.rope_table(table, positions, inverse, 1)
    return table
  }

  #frequenciesOn(device: Device): Tensor {
    let tensor = this.#uploaded.get(device)
    if (!tensor) {
      tensor = keep(Tensor.from(device, this.#frequencies, [this.#frequencies.length], 'float32', 'other'))
      this.#uploaded.set(device, tensor)
    }
    return tensor
  }
}
