import type { RopeConfig } from '../nn/index.js'
import type { ConfigReader } from './config.js'

/** Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before it). */
export function parseRope(config: ConfigReader, defaultTheta = 10000): RopeConfig {
  const parameters = config.object('rope_parameters') ?? config.object('rope_scaling') ?? {}
  const number = (name: string, fallback?: number): number => {
    const value = parameters[name] ?? fallback
    if (typeof value !== 'number' || !Number.isFinite(value))
      throw config.unsupported(`rope without "${name}"`, 'a number there')
    return value
  }
  const theta = number('rope_theta', config.number('rope_theta', defaultTheta))
  if (number('partial_rotary_factor', config.number('partial_rotary_factor', 1)) !== 1) {
    throw config.unsupported('partial_rotary_factor other than 1', 'rope over whole heads')
  }
  const type: unknown = parameters.rope_type ?? parameters.type ?? 'default'
  switch (type) {
    case 'default':
      return { type: 'default', theta }
    case 'linear':
      return { type: 'linear', theta, factor: number('factor') }
    case 'llama3':
      return {
        type: 'llama3',
        theta,
        factor: number('factor'),
        lowFreqFactor: number('low_freq_factor'),
        highFreqFactor: number('high_freq_factor'),
        originalMaxPositionEmbeddings: number('original_max_position_embeddings'),
      }
    default:
      throw config.unsupported(`rope type ${JSON.stringify(type)}`, 'default, linear, llama3')
  }
}
