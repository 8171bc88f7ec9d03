import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/** x in another floating-point type; x itself where it has that type. */
export function cast(x: Tensor, dtype: 'float32' | 'bfloat16'): Tensor {
  if (x.dtype === dtype) return x
  const { ops } = x.device
  const y = Tensor.empty(x.device, x.shape, dtype)
  ops.copy(y, x)
  recordingFor([x])?.record(y, [], (dy, gradients) => {
    const dx = Tensor.empty(x.device, x.shape, x.dtype)
    ops.copy(dx, dy.tensor)
    gradients.give(x, dx)
  })
  return y
}
