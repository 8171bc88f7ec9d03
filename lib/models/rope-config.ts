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
    case 'yarn':
      return {
        type: 'yarn',
        theta,
        factor: number('factor'),
        betaFast: number('beta_fast', 32) || 32,
        betaSlow: number('beta_slow', 1) || 1,
        originalMaxPositionEmbeddings: number(
          'original_max_position_embeddings',
          config.number('max_position_embeddings', 2048),
        ),
        attentionFactor: yarnAttentionFactor(number),
        truncate: parameters.truncate !== false,
      }
    default:
      throw config.unsupported(`rope type ${JSON.stringify(type)}`, 'default, linear, llama3, yarn')
  }
}

/** As in transformers: given, or from the factor, by which attention is made sharper. */
function yarnAttentionFactor(number: (name: string, fallback?: number) => number): number {
  const factor = number('factor')
  const scale = (mscale: number) => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1)
  const [numerator, denominator] = [number('mscale', 0), number('mscale_all_dim', 0)]
  const inferred = numerator && denominator ? scale(numerator) / scale(denominator) : scale(1)
  return number('attention_factor', inferred)
}
