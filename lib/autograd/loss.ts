import { invalidArgument } from '../errors.js'
import { Tensor } from '../tensor/tensor.js'
import { checkLinearInput, type HeadOperands } from './linear.js'
import { type OutputRows, overriddenWeight } from './output-rows.js'
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
export function linearCrossEntropy(x: Tensor, head: HeadOperands, targetRows: Tensor, targets: Tensor): Tensor {
  checkLinearInput(x, head)
  const { weight, bias, lora, outputRows = null } = head
  if (lora?.dropout) {
    throw invalidArgument(
      `${weight.name}: LoRA dropout on the head is not supported; set loraDropout to 0 or leave the head out`,
    )
  }
  const { ops } = x.device
  const trained = [weight, bias, lora?.a, lora?.b, outputRows?.rows].some((parameter) => parameter?.requiresGrad)
  const tape = recordingFor([x], trained)
  const losses = Tensor.empty(x.device, [targets.shape[0]!], 'float32')
  const dx = tape?.tracks(x) ? Tensor.empty(x.device, x.shape, x.dtype) : null
  const own = outputRows && overriddenWeight(weight, outputRows)
  const table = own?.weight ?? weight.value
  const gradientOf = (parameter: Parameter | null | undefined, { shape } = parameter?.value ?? table): Tensor | null =>
    tape && parameter?.requiresGrad ? Tensor.empty(x.device, shape, 'float32', 'gradients') : null
  const dWeight = gradientOf(weight, table)
  const dBias = gradientOf(bias)
  const dA = outputRows ? gradientOf(outputRows.rows, own?.difference) : gradientOf(lora?.a)
  const dB = gradientOf(lora?.b)
  ops.linear_cross_entropy(
    losses,
    dx,
    dWeight,
    dBias,
    dA,
    dB,
    x,
    table,
    outputRows ? outputRows.bias : (bias?.value ?? null),
    own?.difference ?? lora?.a.value ?? null,
    outputRows?.select ?? lora?.b.value ?? null,
    targetRows,
    targets,
    head.transposed ? 1 : 0,
    outputRows ? 1 : (lora?.scale ?? 0),
  )
  tape?.record(losses, [dx, dWeight, dBias, dA, dB], (dLosses, gradients) => {
    const scale = uniformOf(dLosses.uniform, 'linear_cross_entropy')
    if (dx) {
      ops.scale(dx, dx, null, scale)
      gradients.give(x, dx.retain())
    }
    if (dWeight) accumulate(weight, outputRows ? withoutRows(dWeight, outputRows, weight.shape[0]!) : dWeight, scale)
    if (dBias) accumulate(bias!, dBias, scale)
    if (dA && outputRows) {
      ops.scale(dA, dA, null, scale)
      ops.scatter_add_rows(outputRows.rows.gradientBuffer(), dA, outputRows.index)
    } else if (dA) accumulate(lora!.a, dA, scale)
    if (dB) accumulate(lora!.b, dB, scale)
  })
  return losses
}

function accumulate(parameter: Parameter, gradient: Tensor, scale: number): void {
  const total = parameter.gradientBuffer()
  total.device.ops.add(total, total, gradient, scale)
}

/** The weight's own part of the gradient: rows that others stand in for have none. */
function withoutRows(gradient: Tensor, { tokenIds }: OutputRows, rows: number): Tensor {
  for (const id of tokenIds) gradient.device.ops.fill(gradient.rows(id, 1), 0)
  return gradient.rows(0, rows)
}

function uniformOf(uniform: number | null, what: string): number {
  if (uniform === null) throw invalidArgument(`backward of ${what}: the losses must count equally (a sum or mean of them)`)
  return uniform
}
