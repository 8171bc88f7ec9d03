import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/** a + b, same shapes. Backward: both share dy's buffer until one of them is added to. */
export function add(a: Tensor, b: Tensor): Tensor {
  const y = Tensor.empty(a.device, a.shape, a.dtype)
  a.device.ops.add(y, a, b, 1)
  const tape = recordingFor([a, b])
  if (!tape) return y
  const needed = [a, b].filter((x) => tape.tracks(x))
  tape.record(y, [], (dy, gradients) => {
    for (const x of needed) gradients.add(x, dy)
  })
  return y
}

/** The same values under another shape; no operation is queued. */
export function reshape(x: Tensor, shape: number[]): Tensor {
  const y = x.view(shape)
  recordingFor([x])?.record(y, [], (dy, gradients) => gradients.add(x, dy))
  return y
}
