import * as autograd from '../autograd/index.js'
import type { Tensor } from '../tensor/tensor.js'
import { inContext, type LayerContext } from './context.js'

export interface LinearLayer {
  /** e.g. model.layers.0.self_attn.q_proj */
  name: string
  /** [out, in], or [in, out] when transposed */
  weight: autograd.Parameter
  bias: autograd.Parameter | null
  transposed: boolean
}

/** The layer's operands for this call: its own parameters, and what the adapter adds to them. */
export function linearOperands(layer: LinearLayer, context: LayerContext): autograd.LinearOperands {
  const { name, transposed } = layer
  const lora = context.adapter?.lora(name) ?? null
  const rng = context.dropoutRng
  return {
    weight: inContext(`${name}.weight`, layer.weight, context),
    bias: layer.bias && inContext(`${name}.bias`, layer.bias, context),
    transposed,
    lora: lora && {
      a: lora.a,
      b: lora.b,
      scale: lora.scale,
      dropout: rng && lora.dropout > 0 ? { rng, site: lora.site, p: lora.dropout } : null,
    },
  }
}

/** x [M, in] → [M, out] */
export function linear(x: Tensor, layer: LinearLayer, context: LayerContext): Tensor {
  return autograd.linear(x, linearOperands(layer, context))
}
