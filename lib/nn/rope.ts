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
  | {
      type: 'yarn'
      theta: number
      factor: number
      /** Rotations over the original context above which a frequency is kept, and below which it is interpolated. */
      betaFast: number
      betaSlow: number
      originalMaxPositionEmbeddings: number
      /** Multiplies cosines and sines. */
      attentionFactor: number
      /** Whether the range between the two ends at whole dimensions. */
      truncate: boolean
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
    case 'yarn':
      return yarnFrequencies(headDim, rope)
  }
}

/** High frequencies are kept, low ones interpolated, with a ramp over the dimensions between (Peng et al. 2023). */
function yarnFrequencies(headDim: number, rope: Extract<RopeConfig, { type: 'yarn' }>): Float32Array {
  const { theta, factor, betaFast, betaSlow, originalMaxPositionEmbeddings: context, truncate } = rope
  const dimensionOf = (rotations: number) => (headDim * Math.log(context / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const low = Math.max(truncate ? Math.floor(dimensionOf(betaFast)) : dimensionOf(betaFast), 0)
  const end = Math.min(truncate ? Math.ceil(dimensionOf(betaSlow)) : dimensionOf(betaSlow), headDim - 1)
  const high = end === low ? end + 0.001 : end
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const period = fround(theta ** fround((2 * i) / headDim))
    const kept = fround(1 - Math.min(Math.max(fround(fround(i - low) / fround(high - low)), 0), 1))
    return fround(fround(1 / fround(factor * period)) * fround(1 - kept)) + fround(fround(1 / period) * kept)
  })
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
  readonly #scaling: number
  readonly #uploaded = new WeakMap<Device, Tensor>()

  constructor(rope: RopeConfig, headDim: number) {
    this.#frequencies = inverseFrequencies(rope, headDim)
    this.#scaling = rope.type === 'yarn' ? rope.attentionFactor : 1
  }

  at(positions: Tensor): Tensor {
    const { device } = positions
    const inverse = this.#frequenciesOn(device)
    const table = Tensor.empty(device, [positions.shape[0]!, 2 * this.#frequencies.length], 'float32')
    device.ops.rope_table(table, positions, inverse, this.#scaling)
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
