import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/** Numbers as in the operation `activation`. */
export const ACTIVATION_KINDS = { gelu_tanh: 0, gelu: 1, silu: 2, relu: 3 } as const
export type ActivationKind = keyof typeof ACTIVATION_KINDS

/** y = silu(gate) · up (Shazeer 2020). */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const { ops } = gate.device
  const y = Tensor.empty(gate.device, gate.shape, gate.dtype)
  ops.swiglu(y, gate, up)
  const tape = recordingFor([gate, up])
  if (!tape) return y
  const needsGate = tape.tracks(gate)
  const needsUp = tape.tracks(up)
  tape.record(
    y,
    [gate, up],
    (dy, gradients) => {
      const dGate = Tensor.empty(gate.device, gate.shape, gate.dtype)
      const dUp = Tensor.empty(up.device, up.shape, up.dtype)
      ops.swiglu_backward(dGate, dUp, dy.tensor, gate, up)
      if (needsGate) gradients.give(gate, dGate)
      if (needsUp) gradients.give(up, dUp)
    },
    () => {
      const again = Tensor.empty(gate.device, gate.shape, gate.dtype)
      ops.swiglu(again, gate, up)
      return again
    },
  )
  return y
}

export function activation(x: Tensor, name: ActivationKind): Tensor {
  const { ops } = x.device
  const kind = ACTIVATION_KINDS[name]
  const y = Tensor.empty(x.device, x.shape, x.dtype)
  ops.activation(y, x, kind)
  recordingFor([x])?.record(
    y,
    [x],
    (dy, gradients) => {
      const dx = Tensor.empty(x.device, x.shape, x.dtype)
      ops.activation_backward(dx, dy.tensor, x, kind)
      gradients.give(x, dx)
    },
    () => {
      const again = Tensor.empty(x.device, x.shape, x.dtype)
      ops.activation(again, x, kind)
      return again
    },
  )
  return y
}
