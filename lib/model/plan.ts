import type { Parameter } from '../autograd/index.js'
import { QuantuneError } from '../errors.js'
import { corruptFile } from '../formats/errors.js'
import type { StoredTensor, WeightFiles } from '../formats/weight-files.js'
import type { Architecture, CausalLM } from '../models/index.js'
import type { Initializer } from '../nn/index.js'
import { isCompanion, isFourBit, isInt8 } from '../quantization/bitsandbytes.js'
import { namesModule, type ResolvedQuantization, unsupportedMethod } from '../quantization/config.js'

/** A parameter before it exists. */
export interface PlannedParameter {
  readonly name: string
  readonly shape: readonly number[]
  readonly init: Initializer
  /** [in, out]: a weight of GPT-2's Conv1D. */
  readonly transposed: boolean
  /** Its weight belongs to a linear layer that `quantization` covers. */
  readonly quantize: boolean
}

/** Asks an architecture for its parameters without making one: the network that it builds here is never run. */
export function planParameters(
  architecture: Architecture,
  config: Readonly<Record<string, unknown>>,
  quantization: ResolvedQuantization | null,
): { parameters: PlannedParameter[]; network: CausalLM } {
  const planned = new Map<string, { name: string; shape: readonly number[]; init: Initializer }>()
  const shapeOnly = (name: string, shape: readonly number[], init: Initializer) => {
    planned.set(name, { name, shape, init })
    return { name, shape, requiresGrad: false } as Parameter
  }
  const network = architecture.create(architecture.parseConfig(config), shapeOnly, { dtype: 'float32' })
  const quantized = new Set<string>()
  const lying = new Set<string>()
  for (const [module, { weight, transposed }] of network.linearLayers) {
    if (transposed) lying.add(weight.name)
    const tied = weight.name !== `${module}.weight`
    if (quantization && !tied && !namesModule(quantization.skipModules, module)) quantized.add(weight.name)
  }
  const parameters = [...planned.values()].map((entry) => ({
    ...entry,
    transposed: lying.has(entry.name),
    quantize: quantized.has(entry.name),
  }))
  return { parameters, network }
}

/** Finds each parameter's tensor in the files and checks type and shape before anything is loaded. */
export function locateParameters(
  files: WeightFiles,
  parameters: readonly PlannedParameter[],
  architecture: Architecture,
): Map<string, StoredTensor> {
  const located = new Map<string, StoredTensor>()
  for (const { name, shape } of parameters) {
    const stored = architecture
      .fileNames(name)
      .map((candidate) => files.tensors.get(candidate))
      .find((tensor) => tensor)
    if (stored === undefined) throw corruptFile(files.folder, 'is not in the model’s files', { tensor: name })
    if (!isFourBit(files, stored.name) && !isInt8(files, stored.name)) checkStored(stored, shape)
    located.set(name, stored)
  }
  refuseStrangers(files, located, parameters)
  return located
}

const loadable: ReadonlySet<string> = new Set(['F32', 'F16', 'BF16'])

function checkStored({ name: tensor, path, dtype, shape }: StoredTensor, expected: readonly number[]): void {
  if (dtype.startsWith('F8') || dtype.startsWith('F4')) throw unsupportedMethod(dtype.startsWith('F8') ? 'fp8' : 'mxfp4')
  if (!loadable.has(dtype)) throw corruptFile(path, `is ${dtype}; weights must be F32, F16 or BF16`, { tensor })
  if (shape.join() !== expected.join()) {
    throw corruptFile(path, `has shape [${shape.join(', ')}], config.json asks for [${expected.join(', ')}]`, { tensor })
  }
}

/**
 * A tensor of a module that the model has, but which the model would not use (a bias that config.json does not mention), means that
 * the model computes something else than its files say. Others, such as old attention masks, are harmless.
 */
function refuseStrangers(
  files: WeightFiles,
  located: Map<string, StoredTensor>,
  parameters: readonly PlannedParameter[],
): void {
  const used = new Set([...located.values()].map(({ name }) => name))
  const moduleOf = (name: string) => name.slice(0, name.lastIndexOf('.'))
  const matrices = new Set(
    parameters.filter(({ shape }) => shape.length === 2).map(({ name }) => moduleOf(located.get(name)!.name)),
  )
  for (const { name, path } of files.tensors.values()) {
    if (used.has(name) || isCompanion(name) || !matrices.has(moduleOf(name))) continue
    const message = `${path}: tensor "${name}" belongs to a part of the model that config.json does not mention or quantune does not have`
    throw new QuantuneError('ERR_UNSUPPORTED_ARCHITECTURE', message, { details: { path, tensor: name } })
  }
}
