import { type OutputRows, Parameter } from '../autograd/index.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'
import { isQuantized } from '../tensor/dtype.js'
import { keep } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type Adapter, type LoraLayer, PEFT_PREFIX, type TokenRows } from './adapter.js'

export interface TokenRowsOptions {
  /** float32 [tokens, hidden]; absent: zeros */
  values?: Float32Array
  /** Those of the tokens that the head predicts. Default: none. */
  predictable?: readonly number[]
}

/**
 * Trainable rows for single tokens (PEFT's `trainable_token_indices`): in the embedding they stand in for the base's rows, and tokens
 * beyond its vocabulary have no other row. Predictable tokens have rows in the head too.
 *
 * @param tokenIds the tokens, in the order of the rows
 */
export function createTokenRows(network: CausalLM, tokenIds: readonly number[], options: TokenRowsOptions = {}): TokenRows {
  const { values, predictable = [] } = options
  const { value } = network.parameters.get(`${network.embeddingName}.weight`)!
  const [vocabulary, width] = value.shape as [number, number]
  if (values && values.length !== tokenIds.length * width) {
    throw invalidArgument(`token rows: expected ${tokenIds.length} x ${width} values; got ${values.length}`)
  }
  const { device } = value
  const rowOf = new Int32Array(Math.max(vocabulary, ...tokenIds.map((id) => id + 1))).fill(-1)
  for (const [row, id] of tokenIds.entries()) rowOf[id] = row
  const rows = newRows(network, network.embeddingName, tokenIds.length)
  if (values) rows.value.write(values)
  return {
    tokenIds: [...tokenIds],
    rows,
    rowOf: keep(Tensor.from(device, rowOf, [rowOf.length], 'int32', 'other')),
    head: predictable.length > 0 ? createHeadRows(network, tokenIds, rows, predictable) : null,
  }
}

/** Zeros, float32 [count, hidden]. */
function newRows(network: CausalLM, module: string, count: number): Parameter {
  const { value } = network.linearLayers.get(network.headName)!.weight
  const rows = keep(Tensor.zeros(value.device, [count, network.shape.hiddenSize], 'float32', 'adapters'))
  return new Parameter(`${PEFT_PREFIX}${module}.token_adapter.trainable_tokens_delta`, rows, { requiresGrad: true })
}

/** Whether embedding and head are one weight. */
export function isTied(network: CausalLM): boolean {
  return !network.parameters.has(`${network.headName}.weight`)
}

type ChangesLayers = Pick<Adapter, 'name' | 'replaced'> & { layers: ReadonlyMap<string, LoraLayer> }

/**
 * Tokens that are predicted have rows in the head.
 * @throws ERR_INVALID_ARGUMENT where it can have none: it is quantized, or the adapter changes it as a whole
 */
export function checkHead({ headName, linearLayers }: CausalLM, adapter: ChangesLayers | null): void {
  const { dtype } = linearLayers.get(headName)!.weight
  const quantized = isQuantized(dtype)
  if (!quantized && !adapter?.layers.has(headName) && !adapter?.replaced(`${headName}.weight`)) return
  const problem = quantized
    ? `is ${dtype} (leave it out with skipModules)`
    : `is changed as a whole by adapter "${adapter!.name}"`
  throw invalidArgument(`tokens that the model can generate need rows in its head, but ${headName} ${problem}`)
}

function createHeadRows(
  network: CausalLM,
  tokenIds: readonly number[],
  embedded: Parameter,
  predictable: readonly number[],
): OutputRows {
  const { weight, outFeatures } = network.linearLayers.get(network.headName)!
  const { device } = weight.value
  const outputs = Math.max(outFeatures, ...predictable.map((id) => id + 1))
  const select = new Float32Array(outputs * predictable.length)
  const bias = new Float32Array(outputs).fill(Number.NEGATIVE_INFINITY, outFeatures)
  for (const [i, id] of predictable.entries()) {
    select[id * predictable.length + i] = 1
    bias[id] = 0
  }
  const places = isTied(network) ? predictable.map((id) => tokenIds.indexOf(id)) : predictable.map((_, i) => i)
  const int32 = (list: readonly number[]) => keep(Tensor.from(device, Int32Array.from(list), [list.length], 'int32', 'other'))
  return {
    tokenIds: [...predictable],
    rows: isTied(network) ? embedded : newRows(network, network.headName, predictable.length),
    index: int32(places),
    ids: int32(predictable),
    select: keep(Tensor.from(device, select, [outputs, predictable.length], 'float32', 'other')),
    bias: bias.includes(Number.NEGATIVE_INFINITY) ? keep(Tensor.from(device, bias, [outputs], 'float32', 'other')) : null,
  }
}

/** The parameters among them: those of the embedding, and the head's where it has its own. */
export function parametersOf({ rows, head }: TokenRows): Parameter[] {
  return head && head.rows !== rows ? [rows, head.rows] : [rows]
}

export function disposeTokenRows(tokenRows: TokenRows): void {
  for (const parameter of parametersOf(tokenRows)) parameter.dispose()
  const { rowOf, head } = tokenRows
  for (const tensor of [rowOf, head?.index, head?.ids, head?.select, head?.bias]) tensor?.dispose()
}
