import type { EmbeddingRows, OutputRows, Parameter } from '../autograd/index.js'

/** The part of a parameter's name in PEFT's files that stands for the wrapped base model. */
export const PEFT_PREFIX = 'base_model.model.'

/** The low-rank update of one linear layer. */
export interface LoraLayer {
  /** A [r, in], float32 */
  a: Parameter
  /** B [out, r], float32 */
  b: Parameter
  /** alpha / r, or alpha / √r */
  scale: number
  /** probability that an input of A is dropped in training */
  dropout: number
  /** the layer's number, by which its random bits are drawn */
  site: number
}

/** Rows of the embedding that an adapter trains in place of the base's, or beyond its vocabulary. */
export interface TokenRows extends EmbeddingRows {
  /** token ids, in the order of the rows */
  tokenIds: readonly number[]
  /**
   * Those of the tokens that the head predicts by rows that are trained with these: the same ones where embedding and head share their
   * weight, else rows of their own. null: none; such tokens are read only.
   */
  head: OutputRows | null
}

/**
 * What layers ask of an adapter. It owns its parameters, knows the base by names alone, and changes nothing in it: so several can be
 * in use at once, each call with its own.
 */
export interface Adapter {
  readonly type: string
  readonly name: string
  readonly config: unknown
  /** Its parameters under PEFT's names (`base_model.model.….lora_A.weight`). */
  parameters(): ReadonlyMap<string, Parameter>
  /** The low-rank update of a linear layer, by the layer's name; null where there is none, or while it is merged into the base. */
  lora(module: string): LoraLayer | null
  /** The adapter's own copy of one of the base's parameters (biases, `modulesToSave`), by the base's name. */
  replaced(parameter: string): Parameter | null
  readonly tokenRows: TokenRows | null
  dispose(): void
}
