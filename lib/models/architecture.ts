import type { ParameterSource } from '../nn/index.js'
import type { CausalLM, ModelShape } from './causal-lm.js'

export interface CreateOptions {
  /** The type of activations and of compute. */
  dtype: 'float32' | 'bfloat16'
}

/** A family of models that share one computation. */
export interface Architecture<Config extends ModelShape = ModelShape> {
  /** Values of `model_type` in config.json. */
  readonly modelTypes: readonly string[]
  /** Reads a Hugging Face config; what is not supported is refused by name (`ERR_UNSUPPORTED_ARCHITECTURE`). */
  parseConfig(json: Record<string, unknown>): Config
  create(config: Config, params: ParameterSource, options: CreateOptions): CausalLM
  /** The names under which files may hold a parameter, the usual one first. */
  fileNames(parameter: string): readonly string[]
}
