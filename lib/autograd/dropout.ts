import { Tensor } from '../tensor/tensor.js'
import { type DropoutDraw, drawDropout } from './linear.js'
import { recordingFor } from './tape.js'

/** Zeroes elements with probability p and scales the others by 1 / (1 - p). The mask is drawn again in the backward pass. */
export function dropout(x: Tensor, draw: DropoutDraw): Tensor {
  const y = drawDropout(x, draw)
  recordingFor([x])?.record(y, [draw.rng], (dy, gradients) => {
    const dx = Tensor.empty(x.device, x.shape, x.dtype)
    x.device.ops.dropout(dx, dy.tensor, draw.rng, draw.site, draw.p)
    gradients.give(x, dx)
  })
  return y
}
