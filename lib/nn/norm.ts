import * as autograd from '../autograd/index.js'
import type { Tensor } from '../tensor/tensor.js'
import { inContext, type LayerContext } from './context.js'

export interface NormLayer {
  name: string
  /** [hidden] */
  weight: autograd.Parameter
  /** LayerNorm's; RMSNorm has none */
  bias: autograd.Parameter | null
  eps: number
}

export function rmsNorm(x: Tensor, layer: NormLayer, context: LayerContext): Tensor {
  return autograd.rmsNorm(x, inContext(`${layer.name}.weight`, layer.weight, context), layer.eps)
}

export function layerNorm(x: Tensor, layer: NormLayer, context: LayerContext): Tensor {
  const bias = layer.bias && inContext(`${layer.name}.bias`, layer.bias, context)
  return autograd.layerNorm(x, inContext(`${layer.name}.weight`, layer.weight, context), bias, layer.eps)
}
