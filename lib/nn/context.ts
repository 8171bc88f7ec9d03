import type { Parameter } from '../autograd/index.js'
import type { Adapter } from '../peft/adapter.js'
import type { Tensor } from '../tensor/tensor.js'

/** What one call brings to every layer. */
export interface LayerContext {
  adapter: Adapter | null
  /** int32 [4], see `dropout`; null outside training */
  dropoutRng: Tensor | null
}

/** A layer's parameter as this call sees it: the adapter's own copy, if it has one. */
export function inContext(name: string, parameter: Parameter, { adapter }: LayerContext): Parameter {
  return adapter?.replaced(name) ?? parameter
}
