import { invalidArgument } from '../errors.js'
import { Tensor } from '../tensor/tensor.js'
import { type OutputRows, overriddenWeight } from './output-rows.js'
import type { Parameter } from './parameter.js'
import { recordingFor, type Tape } from './tape.js'

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

/** An output layer: not transposed, without a bias; with rows of its own it has no low-rank update beside them. */
export interface HeadOperands extends LinearOperands {
  outputRows?: OutputRows | null
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
  const trainsLora = lora !== null && (lora.a.requiresGrad || lora.b.requiresGrad)
  const tape = recordingFor([x], weight.requiresGrad || bias?.requiresGrad === true || trainsLora)

  const rows = x.shape[0]!
  const y = Tensor.empty(x.device, [rows, linearSize(operands)[0]], x.dtype)
  const loraX = lora?.dropout ? drawDropout(x, lora.dropout) : null
  const loraH = tape && trainsLora ? Tensor.empty(x.device, [rows, lora.a.shape[0]!], 'float32') : null
  const a = lora?.a.value ?? null
  const b = lora?.b.value ?? null
  const transposed = operands.transposed ? 1 : 0
  x.device.ops.linear(y, loraH, x, weight.value, bias?.value ?? null, loraX, a, b, transposed, lora?.scale ?? 0)
  if (tape) recordLinear(tape, x, y, operands, loraH, trainsLora)
  return y
}

/** The logits of an output layer, without a tape. x [M, K] float32 → [M, outputs] float32. */
export function logits(x: Tensor, head: HeadOperands): Tensor {
  const { outputRows } = head
  if (!outputRows) return linear(x, head)
  checkLinearInput(x, head)
  const { weight, difference } = overriddenWeight(head.weight, outputRows)
  const y = Tensor.empty(x.device, [x.shape[0]!, weight.shape[0]!], 'float32')
  x.device.ops.linear(y, null, x, weight, outputRows.bias, null, difference, outputRows.select, 0, 1)
  return y
}

function recordLinear(
  tape: Tape,
  x: Tensor,
  y: Tensor,
  { weight, bias, lora, transposed }: LinearOperands,
  loraH: Tensor | null,
  trainsLora: boolean,
): void {
  const { device, shape, dtype } = x
  const { ops } = device
  const draw = lora?.dropout ?? null
  const needsX = tape.tracks(x)
  // A frozen layer needs the shape of x alone, which is that of its gradient.
  const readsX = weight.requiresGrad || trainsLora || draw !== null || !needsX
  const saved = readsX ? tape.save(x) : null
  tape.record(y, [saved, loraH, draw?.rng ?? null], (dy, gradients) => {
    const { dx, accumulate } = needsX ? gradients.target(x) : { dx: null, accumulate: 0 }
    const input = (saved?.get() ?? dx)!
    // Drawing again is cheaper than keeping a second copy of x for each adapted layer.
    const dropped = draw && drawDropout(input, draw)
    const dDropped = draw && dx ? Tensor.empty(device, shape, dtype) : null
    ops.linear_backward(
      dx,
      dDropped,
      trainedGradient(weight),
      trainedGradient(bias),
      trainedGradient(lora?.a),
      trainedGradient(lora?.b),
      dy.tensor,
      input,
      weight.value,
      dropped,
      lora?.a.value ?? null,
      lora?.b.value ?? null,
      loraH,
      transposed ? 1 : 0,
      lora?.scale ?? 0,
      accumulate,
    )
    if (draw && dx && dDropped) {
      ops.dropout(dDropped, dDropped, draw.rng, draw.site, draw.p)
      ops.add(dx, dx, dDropped, 1)
    }
  })
}

function trainedGradient(parameter: Parameter | null | undefined): Tensor | null {
  return parameter?.requiresGrad ? parameter.gradientBuffer() : null
}
