import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/**
 * Rotates each head's pairs (i, i + D/2) by its token's angles (Su et al. 2021; "rotate half" as in Hugging Face). x [T, H, D], table
 * [T, D] float32 with cosines in its first half and sines in its second.
 *
 * Overwrites x's buffer: x must be an operation's output whose values nothing else reads.
 */
export function ropeInPlace(x: Tensor, table: Tensor): Tensor {
  const { ops } = x.device
  const y = x.view([...x.shape])
  ops.rope(y, x, table, 0)
  recordingFor([x])?.record(y, [table], (dy, gradients) => {
    if (dy.exclusive) {
      ops.rope(dy.tensor, dy.tensor, table, 1)
      gradients.add(x, dy)
    } else {
      const dx = Tensor.empty(x.device, x.shape, x.dtype)
      ops.rope(dx, dy.tensor, table, 1)
      gradients.give(x, dx)
    }
  })
  return y
}
