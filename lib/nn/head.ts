import * as autograd from '../autograd/index.js'
import type { Adapter } from '../peft/adapter.js'
import type { Tensor } from '../tensor/tensor.js'
import { type LinearLayer, linearOperands } from './linear.js'

/** The output layer's operands for a call: what linear layers have, and the rows of tokens that the adapter predicts by its own. */
export function headOperands(layer: LinearLayer, adapter: Adapter | null): autograd.HeadOperands {
  const outputRows = adapter?.tokenRows?.head ?? null
  return { ...linearOperands(layer, { adapter, dropoutRng: null }), outputRows }
}

/** The output layer on x [R, hidden]: logits, always float32 [R, vocabulary]. */
export function headLogits(x: Tensor, head: autograd.HeadOperands): Tensor {
  return autograd.logits(autograd.cast(x, 'float32'), head)
}
