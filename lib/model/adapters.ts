import { join } from 'node:path'
import { z } from 'zod'
import { getSeed, log } from '../env.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { isJsonObject, readJsonObjectIfPresent } from '../formats/json.js'
import type { LinearLayerInfo } from '../models/index.js'
import { parseOptions } from '../options.js'
import type { LoraLayer } from '../peft/adapter.js'
import { adapterMismatch } from '../peft/config-file.js'
import { loadAdapterFiles, saveAdapterFiles } from '../peft/files.js'
import { LoraAdapter, type LoraConfig, refuseIdlePatterns } from '../peft/lora.js'
import { type DType, isQuantized, keep, scope, Tensor } from '../tensor/index.js'
import { trainingOf } from './calls.js'
import type { ModelAdapter, ModelState } from './state.js'
import { giveTokenRows, NEW_TOKENS, suppress } from './tokens.js'

export interface LoadAdapterOptions {
  /** Default: 'default'. */
  name?: string
  /** Go on training it. Default: false. */
  trainable?: boolean
}

const loadOptionsSchema = z.strictObject({ name: z.string().default('default'), trainable: z.boolean().default(false) })

export function addAdapter(state: ModelState, config: LoraConfig, name: string): void {
  const seeded = isJsonObject(config) ? { seed: getSeed(), ...config } : config
  const adapter = LoraAdapter.create(checkName(state, name), seeded, state.network)
  try {
    refuseIdlePatterns(adapter)
    giveTokenRows(state, adapter)
  } catch (error) {
    adapter.dispose()
    throw error
  }
  register(state, adapter)
}

export async function loadAdapter(state: ModelState, folder: string, options: LoadAdapterOptions | undefined): Promise<void> {
  const { name, trainable } = parseOptions(loadOptionsSchema, options, 'LoadAdapterOptions')
  checkName(state, name)
  const adapter = await loadAdapterFiles(folder, state.network, { name, trainable })
  try {
    await adoptTokens(state, folder, adapter)
    if (!adapter.tokenRows) giveTokenRows(state, adapter)
    checkName(state, name) // another call may have taken it meanwhile
    state.assertLive()
  } catch (error) {
    adapter.dispose()
    throw error
  }
  register(state, adapter)
}

/** Writes PEFT's two files, and the tokenizer when the adapter has tokens of its own. */
export async function saveAdapter(state: ModelState, folder: string, name: string): Promise<void> {
  const adapter = name === NEW_TOKENS && state.newTokens ? state.newTokens : state.adapterNamed(name)
  await saveAdapterFiles(folder, adapter, state.network, state.source)
  if (adapter.tokenRows && state.hasTokenizer) await state.tokenizer.save(folder)
}

function checkName(state: ModelState, name: string): string {
  if (typeof name !== 'string' || name === '' || name === NEW_TOKENS) throw invalidArgument(`"${name}" is no adapter name`)
  if (state.calls.isRunning(trainingOf(name)))
    throw new QuantuneError('ERR_BUSY', `adapter "${name}" is being trained; choose another name`, {
      details: { adapter: name },
    })
  if (state.adapters.has(name))
    throw invalidArgument(`there is an adapter "${name}" already; choose another name`, { adapter: name })
  return name
}

/** The first adapter becomes the default. */
function register(state: ModelState, adapter: ModelAdapter): void {
  state.adapters.set(adapter.name, adapter)
  if (state.adapters.size === 1) state.defaultAdapter = adapter.name
}

/** Tokens that an adapter trained must mean the same here: what the base's tokenizer lacks is taken from the adapter's folder. */
async function adoptTokens(state: ModelState, folder: string, adapter: ModelAdapter): Promise<void> {
  const ids = adapter.tokenRows?.tokenIds ?? []
  if (ids.length === 0 || !state.hasTokenizer) return
  if ((await readJsonObjectIfPresent(join(folder, 'tokenizer.json'))) === null) return
  const { Tokenizer } = await import('../data/tokenizer.js')
  const theirs = await Tokenizer.fromFolder(folder)
  const ours = state.tokenizer
  for (const id of [...ids].sort((a, b) => a - b)) {
    const token = theirs.convertIdsToTokens(id)
    if (token === null || ours.convertIdsToTokens(id) === token) continue
    const got = ours.convertIdsToTokens(id) === null ? ours.addTokens([token])[0] : null
    if (got === id) {
      if (!adapter.tokenRows!.head?.tokenIds.includes(id)) suppress(state, [id])
    } else {
      const problem = `token ${id} is ${JSON.stringify(token)} there and ${JSON.stringify(ours.convertIdsToTokens(id))} here`
      throw adapterMismatch(folder, problem, { tokenId: id })
    }
  }
}

/** s · B A as float32 in the weight's own layout, added to `target`. */
export function addLoraDelta(target: Tensor, { a, b, scale }: LoraLayer, { transposed }: LinearLayerInfo): void {
  const { ops } = target.device
  if (transposed) ops.matmul(target, a.value, b.value, 1, 1, scale, 1)
  else ops.matmul(target, b.value, a.value, 0, 0, scale, 1)
}

/** A float32 copy of a weight of any type; the caller disposes of it. */
export function toFloat32(weight: Tensor, purpose: 'weights' | 'other'): Tensor {
  const copy = Tensor.empty(weight.device, weight.shape, 'float32', purpose)
  if (isQuantized(weight.dtype)) weight.device.ops.dequantize(copy, weight)
  else weight.device.ops.copy(copy, weight)
  return copy
}

/** Bytes that merging an adapter will take, until it is unmerged. */
function mergeBytes(state: ModelState, adapter: ModelAdapter): number {
  let bytes = 0
  for (const module of adapter.layers.keys()) {
    const { weight, inFeatures, outFeatures } = state.network.linearLayers.get(module)!
    bytes += inFeatures * outFeatures * (mergedType(state, weight.dtype) === 'float32' ? 4 : 2)
  }
  return bytes
}

/** Quantized weights are merged in the compute dtype, others in their own. */
function mergedType(state: ModelState, dtype: DType): DType {
  return isQuantized(dtype) ? state.dtype : dtype
}

/** Puts W + s B A in the place of each adapted weight and keeps the old ones aside, so that unmerging is exact. */
export async function mergeAdapter(state: ModelState, name: string): Promise<void> {
  await state.calls.whenIdle(() => merge(state, name))
  await state.device.settled()
}

function merge(state: ModelState, name: string): void {
  state.assertLive()
  const adapter = state.adapterNamed(name)
  if (state.merged?.adapter === adapter) return
  if (state.merged) throw invalidArgument(`adapter "${state.merged.adapter.name}" is merged already; unmerge it first`)
  const tied = adapter.layers.has(state.network.headName) && !state.network.parameters.has(`${state.network.headName}.weight`)
  if (tied)
    throw invalidArgument(
      `adapter "${name}" adapts the head, which shares its weight with the embedding; it can be merged on saving`,
    )
  log(
    'info',
    () => `merging adapter "${name}" takes ${(mergeBytes(state, adapter) / 2 ** 20).toFixed(1)} MiB until it is unmerged`,
  )
  const replaced = new Map<string, Tensor>()
  for (const [module, layer] of adapter.layers) {
    const info = state.network.linearLayers.get(module)!
    replaced.set(info.weight.name, info.weight.exchange(scope(() => keep(mergedWeight(state, layer, info)))))
  }
  adapter.merged = true
  state.merged = { adapter, replaced }
}

function mergedWeight(state: ModelState, layer: LoraLayer, info: LinearLayerInfo): Tensor {
  const sum = toFloat32(info.weight.value, 'weights')
  addLoraDelta(sum, layer, info)
  const dtype = mergedType(state, info.weight.dtype)
  if (dtype === 'float32') return sum
  const rounded = Tensor.empty(state.device, sum.shape, dtype, 'weights')
  state.device.ops.copy(rounded, sum)
  return rounded
}

export function unmergeAdapter(state: ModelState, name: string): Promise<void> {
  return state.calls.whenIdle(() => unmerge(state, name))
}

function unmerge(state: ModelState, name: string): void {
  state.assertLive()
  const adapter = state.adapterNamed(name)
  if (state.merged?.adapter !== adapter) throw invalidArgument(`adapter "${name}" is not merged`)
  for (const [parameter, old] of state.merged.replaced) state.network.parameters.get(parameter)!.exchange(old).dispose()
  adapter.merged = false
  state.merged = null
}
