import { Tensor } from '../tensor/tensor.js'
import { recordingFor } from './tape.js'

/** Who sees whom, for one set of queries: query i stands at stream index rows[i] and sees key j iff j <= rows[i] < end[j]. */
export interface AttentionMask {
  /** int32 [Tq], null when every token asks */
  rows: Tensor | null
  /** int32 [Tk] */
  end: Tensor
  /** the backend's own, from `attention_plan` */
  plan: Tensor
}

/** softmax(scale q kᵀ) v over the visible keys. q [Tq, H, D], k and v [Tk, Hkv, D] → [Tq, H, D]. */
export function attention(q: Tensor, k: Tensor, v: Tensor, { rows, end, plan }: AttentionMask, scale: number): Tensor {
  const { ops } = q.device
  const tape = recordingFor([q, k, v])
  const o = Tensor.empty(q.device, q.shape, q.dtype)
  const lse = tape ? Tensor.empty(q.device, [q.shape[0]!, q.shape[1]!], 'float32') : null
  ops.attention(o, lse, q, k, v, rows, end, plan, scale)
  if (!tape || !lse) return o
  const needs = { q: tape.tracks(q), k: tape.tracks(k), v: tape.tracks(v) }
  tape.record(o, [o, lse, q, k, v, rows, end, plan], (dO, gradients) => {
    const dq = Tensor.empty(q.device, q.shape, q.dtype)
    const dk = Tensor.empty(k.device, k.shape, 'float32')
    const dv = Tensor.empty(v.device, v.shape, 'float32')
    ops.attention_backward(dq, dk, dv, dO.tensor, o, lse, q, k, v, rows, end, plan, scale)
    if (needs.q) gradients.give(q, dq)
    if (needs.k) gradients.give(k, inDtypeOf(k, dk))
    if (needs.v) gradients.give(v, inDtypeOf(v, dv))
  })
  return o
}

/** Gradients of keys and values are summed over all branches in float32; further down they have their activations' dtype. */
function inDtypeOf(x: Tensor, gradient: Tensor): Tensor {
  if (x.dtype === gradient.dtype) return gradient
  const converted = Tensor.empty(x.device, x.shape, x.dtype)
  x.device.ops.copy(converted, gradient)
  return converted
}
