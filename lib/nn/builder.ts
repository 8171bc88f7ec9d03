import type { Parameter } from '../autograd/index.js'
import type { LinearLayerInfo } from '../models/causal-lm.js'
import type { EmbeddingLayer } from './embedding.js'
import type { Initializer } from './initializer.js'
import type { LinearLayer } from './linear.js'
import type { NormLayer } from './norm.js'

/** Where an architecture gets its parameters: from a file, or newly drawn as `init` says. */
export type ParameterSource = (name: string, shape: readonly number[], init: Initializer) => Parameter

/** Collects the parameters and linear layers of a model while its architecture names them. */
export class ModelBuilder {
  readonly parameters = new Map<string, Parameter>()
  readonly linearLayers = new Map<string, LinearLayerInfo>()
  readonly #source: ParameterSource
  readonly #std: number

  /** @param std the standard deviation of newly drawn weights (`initializer_range`) */
  constructor(source: ParameterSource, std: number) {
    this.#source = source
    this.#std = std
  }

  embedding(name: string, rows: number, width: number): EmbeddingLayer {
    return { name, weight: this.#parameter(`${name}.weight`, [rows, width], { kind: 'normal', std: this.#std }) }
  }

  linear(
    name: string,
    inFeatures: number,
    outFeatures: number,
    options: { bias?: boolean; transposed?: boolean; std?: number } = {},
  ): LinearLayer {
    const transposed = options.transposed ?? false
    const shape = transposed ? [inFeatures, outFeatures] : [outFeatures, inFeatures]
    const weight = this.#parameter(`${name}.weight`, shape, { kind: 'normal', std: options.std ?? this.#std })
    const bias = options.bias ? this.#parameter(`${name}.bias`, [outFeatures], { kind: 'zeros' }) : null
    return this.#layer({ name, weight, bias, transposed }, inFeatures, outFeatures)
  }

  /** An output layer that uses the embedding's weight. */
  tiedLinear(name: string, { weight }: EmbeddingLayer): LinearLayer {
    const [rows, width] = weight.shape as [number, number]
    return this.#layer({ name, weight, bias: null, transposed: false }, width, rows)
  }

  norm(name: string, width: number, eps: number, options: { bias?: boolean } = {}): NormLayer {
    const weight = this.#parameter(`${name}.weight`, [width], { kind: 'ones' })
    const bias = options.bias ? this.#parameter(`${name}.bias`, [width], { kind: 'zeros' }) : null
    return { name, weight, bias, eps }
  }

  #layer(layer: LinearLayer, inFeatures: number, outFeatures: number): LinearLayer {
    const { weight, bias, transposed } = layer
    this.linearLayers.set(layer.name, { inFeatures, outFeatures, transposed, weight, bias })
    return layer
  }

  #parameter(name: string, shape: readonly number[], init: Initializer): Parameter {
    const parameter = this.#source(name, shape, init)
    this.parameters.set(name, parameter)
    return parameter
  }
}
