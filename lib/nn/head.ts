import * as autograd from '../autograd/index.js'
import type { Tensor } from '../tensor/tensor.js'

/** The output layer on x [R, hidden]: logits, always float32 [R, vocabulary]. */
export function headLogits(x: Tensor, head: autograd.LinearOperands): Tensor {
  return autograd.linear(autograd.cast(x, 'float32'), head)
}
