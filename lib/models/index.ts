import { QuantuneError } from '../errors.js'
import type { Architecture } from './architecture.js'
import { gpt2 } from './gpt2.js'
import { llama } from './llama.js'

export type { Architecture, CreateOptions } from './architecture.js'
export type { Attend, CausalLM, ForwardInput, LinearLayerInfo, ModelShape } from './causal-lm.js'

// biome-ignore lint/suspicious/noExplicitAny: each architecture reads and uses its own config type, which nobody else looks into
const all: Architecture<any>[] = [llama, gpt2]

/** Architectures by `model_type` of config.json. */
export const architectures: ReadonlyMap<string, Architecture> = new Map(
  all.flatMap((architecture) => architecture.modelTypes.map((type) => [type, architecture] as const)),
)

/** The architecture that a config.json asks for. */
export function architectureOf(config: Record<string, unknown>): Architecture {
  const type = config.model_type
  const architecture = typeof type === 'string' ? architectures.get(type) : undefined
  if (architecture) return architecture
  const supported = [...architectures.keys()].join(', ')
  const what = typeof type === 'string' ? `model_type "${type}"` : 'a config.json without model_type'
  throw new QuantuneError('ERR_UNSUPPORTED_ARCHITECTURE', `${what} is not supported; supported: ${supported}`, {
    details: { modelType: type, supported: [...architectures.keys()] },
  })
}
