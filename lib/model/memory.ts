import { z } from 'zod'
import { openWeightFiles } from '../formats/weight-files.js'
import { architectureOf, type CausalLM } from '../models/index.js'
import { parseOptions } from '../options.js'
import { type LoraConfig, loraConfigSchema } from '../peft/lora.js'
import { selectModules } from '../peft/target-modules.js'
import { isFourBit, isInt8 } from '../quantization/bitsandbytes.js'
import {
  parseQuantization,
  parseStoredQuantization,
  type Quantization,
  type ResolvedQuantization,
} from '../quantization/config.js'
import { type HubOptions, hubOptionsSchema } from './options.js'
import { locateParameters, planParameters } from './plan.js'
import { readModelFolder, resolveFolder } from './source.js'

export interface EstimateOptions extends HubOptions {
  quantization?: Quantization
  /** What is trained. Default: nothing; with `trainable` the base. */
  adapter?: LoraConfig
  /** Full fine-tuning. Default: false. */
  trainable?: boolean
  /** Tokens of a micro-batch (prefix-tree tokens). Default: 0, no training step. */
  batchTokens?: number
  /** Default: false. */
  gradientCheckpointing?: boolean
  /** Type of activations. Default: 'float32'. */
  dtype?: 'float32' | 'bfloat16'
}

/** Bytes by purpose. */
export interface MemoryEstimate {
  weights: number
  adapters: number
  gradients: number
  optimizer: number
  /** What one training step keeps for its backward pass, and the largest it needs on the way. */
  activations: number
  total: number
}

const optionsSchema = z.strictObject({
  ...hubOptionsSchema.shape,
  quantization: z.custom<Quantization>().optional(),
  adapter: loraConfigSchema.optional(),
  trainable: z.boolean().default(false),
  batchTokens: z.int().min(0).default(0),
  gradientCheckpointing: z.boolean().default(false),
  dtype: z.enum(['float32', 'bfloat16']).default('float32'),
})

const elementBytes = { F32: 4, F16: 2, BF16: 2 } as Record<string, number>

/** Reads config.json and the headers of the weight files; no weight is loaded. */
export async function estimateMemory(source: string, given: EstimateOptions): Promise<MemoryEstimate> {
  const { quantization, adapter, trainable, batchTokens, gradientCheckpointing, dtype, ...hub } = parseOptions(
    optionsSchema,
    given,
    'EstimateOptions',
  )
  const wanted = parseQuantization(quantization)
  const folder = await resolveFolder(source, hub)
  const { config } = await readModelFolder(folder)
  const architecture = architectureOf(config)
  const stored = parseStoredQuantization(config)
  const files = await openWeightFiles(folder)
  const { parameters, network } = planParameters(architecture, config, stored ?? wanted)
  const located = locateParameters(files, parameters, architecture)
  let weights = 0
  for (const { name, shape, transposed, quantize } of parameters) {
    const elements = shape.reduce((product, n) => product * n, 1)
    const tensor = located.get(name)!
    const quantized = stored ? isFourBit(files, tensor.name) || isInt8(files, tensor.name) : quantize
    if (quantized) weights += quantizedBytes(transposed ? [...shape].reverse() : shape, (stored ?? wanted)!)
    else weights += elements * (trainable || shape.length === 1 ? 4 : elementBytes[tensor.dtype]!)
  }
  const adapters = adapter ? 4 * adapterElements(network, adapter) : 0
  const trained = adapters + (trainable ? 4 * countElements(parameters) : 0)
  const perElement = dtype === 'float32' ? 4 : 2
  const activations = batchTokens === 0 ? 0 : activationBytes(network, batchTokens, perElement, gradientCheckpointing)
  return withTotal({ weights, adapters, gradients: trained, optimizer: 2 * trained, activations })
}

function withTotal(parts: Omit<MemoryEstimate, 'total'>): MemoryEstimate {
  return { ...parts, total: Object.values(parts).reduce((sum, bytes) => sum + bytes, 0) }
}

function countElements(parameters: readonly { shape: readonly number[] }[]): number {
  return parameters.reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0)
}

/**
 * Codes and scales. 4 bits: a scale a block, float32, or one byte and a 256th of a float32. int8: a float32 an output.
 * @param shape [outputs, inputs]
 */
export function quantizedBytes([outputs, inputs]: readonly number[], how: ResolvedQuantization): number {
  if (how.type === 'int8') return outputs! * (64 * Math.ceil(inputs! / 64) + 4)
  const { blockSize, doubleQuant } = how
  const elements = outputs! * inputs!
  const blocks = Math.ceil(elements / blockSize)
  return Math.ceil(elements / 2) + (doubleQuant ? blocks + 4 * Math.ceil(blocks / 256) : 4 * blocks)
}

function adapterElements(network: CausalLM, config: z.output<typeof loraConfigSchema>): number {
  let elements = 0
  for (const module of selectModules(network, config)) {
    const { inFeatures, outFeatures } = network.linearLayers.get(module)!
    elements += config.r * (inFeatures + outFeatures)
  }
  return elements
}

/**
 * What the tape of one layer holds per token: two residual sums, queries, keys, values and the attention's output, and the MLP's
 * values before the activation (what follows from these is computed again). With checkpointing each layer keeps its input, and one
 * layer at a time the rest. The backward pass needs float32 gradients of keys and values, and of the widest layer, beside it.
 */
export function activationBytes(
  { shape, linearLayers, headName }: CausalLM,
  tokens: number,
  perElement: number,
  checkpointing: boolean,
): number {
  const { hiddenSize, numLayers, numHeads, numKeyValueHeads, headDim } = shape
  const queries = numHeads * headDim
  const keys = numKeyValueHeads * headDim
  const ofFirstLayer = [...linearLayers].filter(([name]) => name !== headName && /\.0\./.test(name)).map(([, layer]) => layer)
  const inner = Math.max(...ofFirstLayer.map(({ outFeatures, inFeatures }) => Math.max(outFeatures, inFeatures)))
  const widened = ofFirstLayer.filter(({ outFeatures }) => outFeatures === inner).length
  const layer = 2 * hiddenSize + 2 * queries + 2 * keys + widened * inner
  const backward = tokens * (perElement * (3 * inner + 2 * hiddenSize) + 4 * (queries + 2 * keys))
  const kept = checkpointing ? numLayers * hiddenSize + layer : numLayers * layer
  return tokens * kept * perElement + backward
}
