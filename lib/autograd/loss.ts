import { invalidArgument } from '../errors.js'
import { Tensor } from '../tensor/tensor.js'
import { checkLinearInput, type LinearOperands } from './linear.js'
import type { Parameter } from './parameter.js'
import { recordingFor } from './tape.js'

/** factor · Σ x, float32 [1]. */
export function sum(x: Tensor, factor = 1): Tensor {
  const y = Tensor.empty(x.device, [1], 'float32')
  x.device.ops.sum(y, x, factor, 0)
  recordingFor([x])?.record(y, [], (dy, gradients) => {
    gradients.addUniform(x, uniformOf(dy.uniform, 'sum') * factor)
  })
  return y
}

/**
 * The cross-entropy of each (row, target) pair with the logits x Wᵀ + bias of the head, which are computed in chunks and never held.
 * x [R, K], targetRows int32 [n] ascending (may repeat), targets int32 [n] → float32 [n].
 *
 * The gradients are computed together with the losses, for their sum, and only scaled in the backward pass: so all losses must count
 * the same in what is differentiated.
 */
export function linearCrossEntropy(x: Tensor, head: LinearOperands, targetRows: Tensor, targets: Tensor): Tensor {
  checkLinearInput(x, head)
  const { weight, bias, lora } = head
  if (lora?.dropout) {
    throw invalidArgument(
      `${weight.name}: LoRA dropout on the head is not supported; set loraDropout to 0 or leave the head out`,
    )
  }
  const { ops } = x.device
  const trainable = [weight, bias, lora?.a, lora?.b].filter((p): p is Parameter => p?.requiresGrad === true)
  const tape = recordingFor([x], trainable.length > 0)
  const needsX = tape?.tracks(x) === true
  const losses = Tensor.empty(x.device, [targets.shape[0]!], 'float32')
  const gradientOf = new Map<Parameter, Tensor>()
  const dx = needsX ? Tensor.empty(x.device, x.shape, x.dtype) : null
  if (tape) for (const p of trainable) gradientOf.set(p, Tensor.empty(x.device, p.shape, 'float32', 'gradients'))
  const of = (parameter: Parameter | null | undefined) => (parameter ? (gradientOf.get(parameter) ?? null) : null)
  ops.linear_cross_entropy(
    losses,
    dx,
    of(weight),
    of(bias),
    of(lora?.a),
    of(lora?.b),
    x,
    weight.value,
    bias?.value ?? null,
    lora?.a.value ?? null,
    lora?.b.value ?? null,
    targetRows,
    targets,
    head.transposed ? 1 : 0,
    lora?.scale ?? 0,
  )
  tape?.record(losses, [dx, ...gradientOf.values()], (dLosses, gradients) => {
    const scale = uniformOf(dLosses.uniform, 'linear_cross_entropy')
    if (dx) {
      ops.scale(dx, dx, null, scale)
      gradients.give(x, dx.retain())
    }
    for (const [parameter, gradient] of gradientOf) {
      const total = parameter.gradientBuffer()
      ops.add(total, total, gradient, scale)
    }
  })
  return losses
}

function uniformOf(uniform: number | null, what: string): number {
  if (uniform === null) throw invalidArgument(`backward of ${what}: the losses must count equally (a sum or mean of them)`)
  return uniform
}
