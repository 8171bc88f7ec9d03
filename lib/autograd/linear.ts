import { invalidArgument } from '../errors.js'
import { Tensor } from '../tensor/tensor.js'
import type { Parameter } from './parameter.js'
import { recordingFor } from './tape.js'

/** Dropout drawn from counters: the same `rng` (int32 [4]: seed lo, seed hi, step, micro-batch), site and element give the same bit. */
export interface DropoutDraw {
  rng: Tensor
  site: number
  p: number
}

/** The operands of a low-rank update y += scale (dropout(x) Aᵀ) Bᵀ; a [r, K], b [N, r], float32. */
export interface LoraOperands {
  a: Parameter
  b: Parameter
  scale: number
  dropout: DropoutDraw | null
}

export interface LinearOperands {
  /** [N, K], or [K, N] when transposed (GPT-2's Conv1D). */
  weight: Parameter
  bias: Parameter | null
  transposed: boolean
  lora: LoraOperands | null
}

/** [outputs, inputs] of a weight. */
export function linearSize({ weight, transposed }: LinearOperands): [number, number] {
  const [rows, columns] = weight.shape as [number, number]
  return transposed ? [columns, rows] : [rows, columns]
}

export function checkLinearInput(x: Tensor, operands: LinearOperands): void {
  const [, inputs] = linearSize(operands)
  if (x.shape.length !== 2 || x.shape[1] !== inputs) {
    throw invalidArgument(
      `linear ${operands.weight.name}: x has shape [${x.shape.join(', ')}], the weight takes [rows, ${inputs}] (its shape is [${operands.weight.shape.join(', ')}])`,
    )
  }
}

/** Draws dropout(x) into a new tensor. */
export function drawDropout(x: Tensor, { rng, site, p }: DropoutDraw): Tensor {
  const y = Tensor.empty(x.device, x.shape, x.dtype)
  x.device.ops.dropout(y, x, rng, site, p)
  return y
}

/**
 * y = x Wᵀ + bias + scale (dropout(x) Aᵀ) Bᵀ (Hu et al. 2021, "LoRA"). x [M, K] → y [M, N] in x's dtype.
 * Backward: dx = dy W + scale (dy B) A; dW only for a trainable weight.
 */
export function linear(x: Tensor, operands: LinearOperands): Tensor {
  checkLinearInput(x, operands)
  const { weight, bias, lora } = operands
  const transposed = operands.transposed ? 1 : 0
  const [outputs] = linearSize(operands)
  const { ops } = x.device
  const trainsLora = lora !== null && (lora.a.requiresGrad || lora.b.requiresGrad)
  const trains = weight.requiresGrad || bias?.requiresGrad === true || trainsLora
  const tape = recordingFor([x], trains)

  const y = Tensor.empty(x.device, [x.shape[0]!, outputs], x.dtype)
  const loraX = lora?.dropout ? drawDropout(x, lora.dropout) : null
  const loraH = tape && lora && trainsLora ? Tensor.empty(x.device, [x.shape[0]!, lora.a.shape[0]!], 'float32') : null
  const a = lora?.a.value ?? null
  const b = lora?.b.value ?? null
  ops.linear(y, loraH, x, weight.value, bias?.value ?? null, loraX, a, b, transposed, lora?.scale ?? 0)

  const needsX = tape?.tracks(x) === true
  tape?.record(y, [x, loraH, lora?.dropout?.rng ?? null], (dy, gradients) => {
    // Drawing again is cheaper than keeping a second copy of x for each adapted layer.
    const dropped = lora?.dropout ? drawDropout(x, lora.dropout) : null
    const dDropped = dropped && needsX ? Tensor.empty(x.device, x.shape, x.dtype) : null
    const { dx, accumulate } = needsX ? gradients.target(x) : { dx: null, accumulate: 0 }
    ops.linear_backward(
      dx,
      dDropped,
      weight.requiresGrad ? weight.gradientBuffer() : null,
      bias?.requiresGrad ? bias.gradientBuffer() : null,
      lora?.a.requiresGrad ? lora.a.gradientBuffer() : null,
      lora?.b.requiresGrad ? lora.b.gradientBuffer() : null,
      dy.tensor,
      x,
      weight.value,
      dropped,
      a,
      b,
      loraH,
      transposed,
      lora?.scale ?? 0,
      accumulate,
    )
    if (dx && dDropped && lora?.dropout) {
      ops.dropout(dDropped, dDropped, lora.dropout.rng, lora.dropout.site, lora.dropout.p)
      ops.add(dx, dx, dDropped, 1)
    }
  })
  return y
}
