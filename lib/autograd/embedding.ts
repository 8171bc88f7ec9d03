import { invalidArgument } from '../errors.js'
import { Tensor } from '../tensor/tensor.js'
import type { Parameter } from './parameter.js'
import { recordingFor } from './tape.js'

/** Rows that replace or extend those of an embedding: token id → row_of[id] (int32), -1 where the table's own row stands. */
export interface EmbeddingRows {
  rows: Parameter
  rowOf: Tensor
}

/** y[t] = table[ids[t]], or a replacing row. ids int32 [T], table [V, K] → [T, K] in `dtype`. */
export function embedding(
  ids: Tensor,
  table: Parameter,
  replaced: EmbeddingRows | null,
  dtype: 'float32' | 'bfloat16' = 'float32',
): Tensor {
  if (ids.dtype !== 'int32' || ids.shape.length !== 1) {
    throw invalidArgument(`embedding: ids must be int32 [tokens]; got ${ids.dtype} [${ids.shape.join(', ')}]`)
  }
  const y = Tensor.empty(ids.device, [ids.shape[0]!, table.shape[1]!], dtype)
  const { ops } = ids.device
  ops.embedding(y, ids, table.value, replaced?.rows.value ?? null, replaced?.rowOf ?? null)
  const tape = recordingFor([], table.requiresGrad || replaced?.rows.requiresGrad)
  tape?.record(y, [ids, replaced?.rowOf ?? null], (dy) => {
    ops.embedding_backward(
      table.requiresGrad ? table.gradientBuffer() : null,
      replaced?.rows.requiresGrad ? replaced.rows.gradientBuffer() : null,
      dy.tensor,
      ids,
      replaced?.rowOf ?? null,
    )
  })
  return y
}
