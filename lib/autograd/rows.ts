import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/** y[r] = x[rows[r]]; x [T, …], rows int32 [R] → [R, …]. */
export function gatherRows(x: Tensor, rows: Tensor): Tensor {
  const { ops } = x.device
  const y = Tensor.empty(x.device, [rows.shape[0]!, ...x.shape.slice(1)], x.dtype)
  ops.gather_rows(y, x, rows)
  recordingFor([x])?.record(y, [rows], (dy, gradients) => {
    const { dx, accumulate } = gradients.target(x)
    if (!accumulate) ops.fill(dx, 0)
    ops.scatter_add_rows(dx, dy.tensor, rows)
  })
  return y
}
