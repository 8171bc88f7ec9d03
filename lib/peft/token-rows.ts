import { Parameter } from '../autograd/index.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { TokenRows } from './adapter.js'
import { PEFT_PREFIX } from './lora.js'

/**
 * Trainable embedding rows for single tokens (PEFT's `trainable_token_indices`): they stand in for the base's rows, and tokens beyond
 * its vocabulary have no other row. The head is not touched: such tokens are read, never predicted.
 *
 * @param embedding the embedding's name, such as model.embed_tokens
 * @param tokenIds the tokens, in the order of the rows
 * @param values float32 [tokenIds.length, hidden]; absent: zeros
 */
export function createTokenRows(
  network: CausalLM,
  embedding: string,
  tokenIds: readonly number[],
  values?: Float32Array,
): TokenRows {
  const table = network.parameters.get(`${embedding}.weight`)
  if (!table) throw invalidArgument(`token rows: the model has no embedding "${embedding}"`)
  const [vocabulary, width] = table.shape as [number, number]
  if (values && values.length !== tokenIds.length * width) {
    throw invalidArgument(`token rows: expected ${tokenIds.length} x ${width} values; got ${values.length}`)
  }
  const { device } = table.value
  const rowOf = new Int32Array(Math.max(vocabulary, ...tokenIds.map((id) => id + 1))).fill(-1)
  for (const [row, id] of tokenIds.entries()) rowOf[id] = row
  const shape = [tokenIds.length, width]
  const rows = values
    ? Tensor.from(device, values, shape, 'float32', 'adapters')
    : Tensor.zeros(device, shape, 'float32', 'adapters')
  const name = `${PEFT_PREFIX}${embedding}.token_adapter.trainable_tokens_delta`
  return {
    tokenIds: [...tokenIds],
    rows: new Parameter(name, rows, { requiresGrad: true }),
    rowOf: keep(Tensor.from(device, rowOf, [rowOf.length], 'int32', 'other')),
  }
}
