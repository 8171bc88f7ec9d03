import * as autograd from '../autograd/index.js'
import type { Tensor } from '../tensor/tensor.js'
import { inContext, type LayerContext } from './context.js'

export interface EmbeddingLayer {
  name: string
  /** [vocabulary, hidden] */
  weight: autograd.Parameter
}

/** ids int32 [T] → [T, hidden]; rows that the adapter trains stand in for the table's, or extend it. */
export function tokenEmbedding(
  ids: Tensor,
  layer: EmbeddingLayer,
  context: LayerContext,
  dtype: 'float32' | 'bfloat16',
): Tensor {
  const table = inContext(`${layer.name}.weight`, layer.weight, context)
  return autograd.embedding(ids, table, context.adapter?.tokenRows ?? null, dtype)
}
