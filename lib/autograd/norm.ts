import { Tensor } from '../tensor/tensor.js'
import type { Parameter } from './parameter.js'
import { recordingFor } from './tape.js'

/** y = x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019). x [M, K], weight [K]. */
export function rmsNorm(x: Tensor, weight: Parameter, eps: number): Tensor {
  const { ops } = x.device
  const tape = recordingFor([x], weight.requiresGrad)
  const y = Tensor.empty(x.device, x.shape, x.dtype)
  const rstd = tape ? Tensor.empty(x.device, [x.shape[0]!], 'float32') : null
  ops.rms_norm(y, rstd, x, weight.value, eps)
  if (!tape || !rstd) return y
  const needsX = tape.tracks(x)
  tape.record(
    y,
    [x, rstd],
    (dy, gradients) => {
      const { dx, accumulate } = needsX ? gradients.target(x) : { dx: null, accumulate: 0 }
      const dWeight = weight.requiresGrad ? weight.gradientBuffer() : null
      ops.rms_norm_backward(dx, dWeight, dy.tensor, x, weight.value, rstd, accumulate)
    },
    () => {
      const again = Tensor.empty(x.device, x.shape, x.dtype)
      ops.rms_norm(again, null, x, weight.value, eps)
      return again
    },
  )
  return y
}

/** y = (x - mean) / sqrt(var + eps) · weight + bias (Ba et al. 2016). x [M, K], weight and bias [K]. */
export function layerNorm(x: Tensor, weight: Parameter, bias: Parameter | null, eps: number): Tensor {
  const { ops } = x.device
  const tape = recordingFor([x], weight.requiresGrad || bias?.requiresGrad)
  const y = Tensor.empty(x.device, x.shape, x.dtype)
  const mean = tape ? Tensor.empty(x.device, [x.shape[0]!], 'float32') : null
  const rstd = tape ? Tensor.empty(x.device, [x.shape[0]!], 'float32') : null
  ops.layer_norm(y, mean, rstd, x, weight.value, bias?.value ?? null, eps)
  if (!tape || !mean || !rstd) return y
  const needsX = tape.tracks(x)
  tape.record(
    y,
    [x, mean, rstd],
    (dy, gradients) => {
      const { dx, accumulate } = needsX ? gradients.target(x) : { dx: null, accumulate: 0 }
      const dWeight = weight.requiresGrad ? weight.gradientBuffer() : null
      const dBias = bias?.requiresGrad ? bias.gradientBuffer() : null
      ops.layer_norm_backward(dx, dWeight, dBias, dy.tensor, x, weight.value, mean, rstd, accumulate)
    },
    () => {
      const again = Tensor.empty(x.device, x.shape, x.dtype)
      ops.layer_norm(again, null, null, x, weight.value, bias?.value ?? null, eps)
      return again
    },
  )
  return y
}
