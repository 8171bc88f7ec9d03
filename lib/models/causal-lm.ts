import type { Parameter } from '../autograd/parameter.js'
import type { Adapter } from '../peft/adapter.js'
import type { Tensor } from '../tensor/tensor.js'

/** What the rest of the library needs to know of an architecture's shape; each architecture's own config has more. */
export interface ModelShape {
  modelType: string
  vocabSize: number
  hiddenSize: number
  numLayers: number
  numHeads: number
  numKeyValueHeads: number
  headDim: number
  maxPositionEmbeddings: number
}

/**
 * How a layer's queries meet keys and values; the architecture does not know whether there is a cache behind it.
 * q [Tq, H, D] (rope applied), k and v [T, Hkv, D]; `rows` [Tq] are the queries' stream indices, null when Tq = T. Returns [Tq, H, D].
 */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | null) => Tensor

export interface ForwardInput {
  /** int32 [T] */
  inputIds: Tensor
  /** int32 [T] */
  positions: Tensor
  attend: Attend
  /** int32 [R], ascending: the rows whose output is asked for; null means all. The last layer prunes to them. */
  outputRows: Tensor | null
  adapter: Adapter | null
  /** int32 [4]: seed lo, seed hi, step, micro-batch. Given in training, where the adapter's dropout applies; null or absent: none. */
  dropoutRng?: Tensor | null
  /** Recompute each layer in the backward pass instead of keeping its activations. */
  gradientCheckpointing?: boolean
}

export interface LinearLayerInfo {
  outFeatures: number
  inFeatures: number
  /** The weight is stored [in, out] (GPT-2's Conv1D). */
  transposed: boolean
  weight: Parameter
  bias: Parameter | null
}

/** An architecture with its weights: functions of tensors, nothing else. */
export interface CausalLM {
  readonly shape: ModelShape
  /** All parameters under their Hugging Face names. */
  readonly parameters: ReadonlyMap<string, Parameter>
  /** The linear layers that adapters may wrap: name without ".weight" (e.g. model.layers.0.self_attn.q_proj) → [out, in]. */
  readonly linearLayers: ReadonlyMap<string, LinearLayerInfo>
  /** The name of the layer that embeds tokens, without ".weight". */
  readonly embeddingName: string
  /** The name of the output layer among them; what applies to all linear layers leaves it out. */
  readonly headName: string
  /** The layers that LoRA adapts unless it is told otherwise, by the last part of their names (PEFT's choice for the architecture). */
  readonly defaultTargetModules: readonly string[]
  /** The final norm's output [R, hiddenSize]. */
  hidden(input: ForwardInput): Tensor
  /** The head on `hidden` rows: float32 [R, vocabSize of the head]. */
  logits(hidden: Tensor, adapter: Adapter | null): Tensor
  /** Cross-entropy of each (row of `hidden`, token id) pair: float32 [n]. `targetRows` is ascending and may repeat. */
  losses(hidden: Tensor, targetRows: Tensor, targetIds: Tensor, adapter: Adapter | null): Tensor
}
