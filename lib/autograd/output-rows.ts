import { Tensor } from '../tensor/tensor.js'
import type { Parameter } from './parameter.js'

/**
 * Rows of an output layer's weight that a parameter replaces, or adds behind them: output `tokenIds[i]` is x · rows[index[i]].
 *
 * No operation knows of them. With the weight W (zero rows behind it where there are new outputs), D = rows[index] - W[ids] and the
 * one-hot S [outputs, n] the logits are x Wᵀ + (x Dᵀ) Sᵀ: a low-rank update, whose gradient of D is that of the rows.
 */
export interface OutputRows {
  readonly tokenIds: readonly number[]
  /** [m, K] float32; on a tied model those of the embedding */
  readonly rows: Parameter
  /** int32 [n] */
  readonly index: Tensor
  /** int32 [n] */
  readonly ids: Tensor
  /** float32 [outputs, n] */
  readonly select: Tensor
  /** float32 [outputs]: -infinity for outputs beyond the weight that have no row, else 0; null where all have one */
  readonly bias: Tensor | null
}

/** The tensors that stand for an output layer with rows of its own; in the current scope. */
export interface OverriddenWeight {
  /** [outputs, K] */
  weight: Tensor
  /** D [n, K] float32 */
  difference: Tensor
}

export function overriddenWeight(weight: Parameter, { rows, index, ids, select }: OutputRows): OverriddenWeight {
  const table = weight.withRows(select.shape[0]!)
  const { device } = table
  const shape = [ids.shape[0]!, table.shape[1]!]
  const difference = Tensor.empty(device, shape, 'float32')
  device.ops.gather_rows(difference, rows.value, index)
  const replaced = Tensor.empty(device, shape, 'float32')
  device.ops.embedding(replaced, ids, table, null, null)
  device.ops.add(difference, difference, replaced, -1)
  return { weight: table, difference }
}
