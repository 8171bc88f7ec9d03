/** PEFT's adapter folders: adapter_config.json and adapter_model.safetensors. */
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import type { Parameter } from '../autograd/index.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { writeJsonAtomically } from '../formats/atomic-file.js'
import { elementsOf } from '../formats/dtypes.js'
import { corruptFile, missingFile } from '../formats/errors.js'
import { readJsonObjectIfPresent } from '../formats/json.js'
import { readSafetensorsHeader, type SafetensorsEntry } from '../formats/safetensors.js'
import { type SafetensorsSource, writeSafetensors } from '../formats/safetensors-writer.js'
import { readTensorBytes } from '../formats/weight-files.js'
import type { CausalLM } from '../models/causal-lm.js'
import { isQuantized } from '../tensor/dtype.js'
import { PEFT_PREFIX, type TokenRows } from './adapter.js'
import { adapterConfigJson, adapterMismatch, readAdapterConfig } from './config-file.js'
import { LoraAdapter } from './lora.js'
import { checkHead, createTokenRows, isTied } from './token-rows.js'
import { TokensAdapter } from './tokens.js'

export const ADAPTER_CONFIG = 'adapter_config.json'
export const ADAPTER_WEIGHTS = 'adapter_model.safetensors'
const GENERATION_CONFIG = 'generation_config.json'

const tokenDelta = '.trainable_tokens_delta'

/** A parameter's name in the file: beside LoRA, token rows are an adapter within the adapter. */
function fileName({ type }: LoraAdapter | TokensAdapter, parameter: string): string {
  return type === 'tokens' ? parameter.replace('.token_adapter', '') : parameter
}

/**
 * Reads an adapter folder that PEFT or quantune wrote.
 * @throws ERR_ADAPTER_MISMATCH naming the tensor and both shapes when it was made for another base; ERR_CORRUPT_FILE, ERR_IO;
 *   ERR_INVALID_ARGUMENT for what is not supported, by name
 */
export async function loadAdapterFiles(
  folder: string,
  network: CausalLM,
  { name, trainable }: { name: string; trainable: boolean },
): Promise<LoraAdapter | TokensAdapter> {
  const { config, tokenIds } = await readAdapterConfig(join(folder, ADAPTER_CONFIG))
  const path = join(folder, ADAPTER_WEIGHTS)
  const { entries } = await readWeightsHeader(folder, path)
  const tokens = tokensOf(path, tokenIds, network, await neverGenerated(folder))
  const makeRows = () => createTokenRows(network, tokens.embedded, { predictable: tokens.predictable })
  const adapter = config === null ? new TokensAdapter(name, makeRows()) : createFor(path, name, config, network)
  try {
    if (adapter.type === 'lora' && tokens.embedded.length > 0) adapter.setTokenRows(makeRows())
    if (adapter.tokenRows?.head) checkHead(network, adapter)
    await checkExtraTensors(path, entries, adapter, network)
    for (const [tensor, parameter] of adapter.parameters()) {
      const stored = fileName(adapter, tensor)
      await fill(parameter, path, entries.get(stored) ?? missing(path, stored, parameter))
      parameter.requiresGrad = trainable
    }
    return adapter
  } catch (error) {
    adapter.dispose()
    throw error
  }
}

interface StoredTokens {
  embedded: readonly number[]
  /** Those of them that the head has rows for. */
  predictable: readonly number[]
}

/** PEFT's rule: rows of a tied embedding are the head's too. Tokens that are only read are said to be suppressed. */
function tokensOf(
  path: string,
  stored: ReadonlyMap<string, readonly number[]>,
  network: CausalLM,
  suppressed: readonly number[],
): StoredTokens {
  const rowsOf = (name: string) =>
    [...stored].find(([module]) => module !== '' && (name === module || name.endsWith(`.${module}`)))?.[1]
  const head = rowsOf(network.headName)
  const embedded = stored.get('') ?? rowsOf(network.embeddingName) ?? []
  const refuse = (what: string) => invalidArgument(`${path}: ${what} are not supported`, { path })
  if (stored.size > (stored.has('') || rowsOf(network.embeddingName) ? 1 : 0) + (head ? 1 : 0))
    throw refuse(`token rows of ${[...stored.keys()].join(', ')}`)
  if (head?.some((id) => !embedded.includes(id))) throw refuse('token rows of the head without rows of the embedding')
  if (isTied(network)) {
    if (head && head.length < embedded.length) throw refuse('different token rows of embedding and head, which are tied,')
    return { embedded, predictable: embedded.filter((id) => !suppressed.includes(id)) }
  }
  return { embedded, predictable: head ?? [] }
}

async function neverGenerated(folder: string): Promise<readonly number[]> {
  const json = await readJsonObjectIfPresent(join(folder, GENERATION_CONFIG))
  return (json?.suppress_tokens ?? []) as number[]
}

async function readWeightsHeader(folder: string, path: string) {
  try {
    return await readSafetensorsHeader(path)
  } catch (error) {
    const isMissing = error instanceof QuantuneError && error.details.systemCode === 'ENOENT'
    if (!isMissing) throw error
    const pickle = join(folder, 'adapter_model.bin')
    const isPickle = await access(pickle).then(
      () => true,
      () => false,
    )
    if (!isPickle) throw missingFile(path)
    throw corruptFile(
      pickle,
      'quantune reads safetensors files only: a Python pickle can run any code. Convert it with save_pretrained',
    )
  }
}

function createFor(
  path: string,
  name: string,
  config: Parameters<typeof LoraAdapter.create>[1],
  network: CausalLM,
): LoraAdapter {
  try {
    return LoraAdapter.create(name, config, network)
  } catch (error) {
    const isModules = error instanceof QuantuneError && /targetModules|modulesToSave/.test(error.message)
    throw isModules ? adapterMismatch(path, error.message, error.details, error) : error
  }
}

function missing(path: string, tensor: string, { shape }: Parameter): never {
  throw adapterMismatch(path, `it has no tensor "${tensor}" [${shape.join(', ')}]`, { tensor, expected: shape })
}

async function fill(parameter: Parameter, path: string, entry: SafetensorsEntry): Promise<void> {
  const { name: tensor, shape } = entry
  if (shape.join() !== parameter.shape.join()) {
    const problem = `tensor "${tensor}" is [${shape.join(', ')}], the base asks for [${parameter.shape.join(', ')}]`
    throw adapterMismatch(path, problem, { tensor, shape, expected: parameter.shape })
  }
  parameter.value.write(await readFloats(path, entry))
}

async function readFloats(path: string, entry: SafetensorsEntry): Promise<Float32Array> {
  const elements = elementsOf(entry.dtype, await readTensorBytes({ ...entry, path }))
  if (elements instanceof Float32Array) return elements
  throw corruptFile(path, `is ${entry.dtype}; adapter weights must be F32, F16 or BF16`, { tensor: entry.name })
}

/** Every tensor of the file must have a use: what is left over was trained, and would be lost silently. */
async function checkExtraTensors(
  path: string,
  entries: ReadonlyMap<string, SafetensorsEntry>,
  adapter: LoraAdapter | TokensAdapter,
  network: CausalLM,
): Promise<void> {
  const expected = new Set([...adapter.parameters().keys()].map((name) => fileName(adapter, name)))
  for (const entry of entries.values()) {
    const { name: tensor, shape } = entry
    if (expected.has(tensor)) continue
    const [module, isDelta] = baseModuleOf(tensor)
    const tied = module === network.headName && isTied(network)
    // On a tied model PEFT writes the tokens' rows for the head too: the same ones.
    if (isDelta && tied && adapter.tokenRows) continue
    const isEmbedding = module === network.embeddingName || module === network.headName
    if (isEmbedding && !isDelta && adapter.tokenRows && (await isBaseTable(path, entry, module, adapter.tokenRows, network)))
      continue
    throw adapterMismatch(path, `the base has no use for tensor "${tensor}" [${shape.join(', ')}]`, { tensor, shape })
  }
}

/** The module that a tensor of a token adapter, or a saved embedding, belongs to. */
function baseModuleOf(tensor: string): [module: string, isDelta: boolean] {
  const name = tensor.startsWith(PEFT_PREFIX) ? tensor.slice(PEFT_PREFIX.length) : tensor
  const isDelta = name.endsWith(tokenDelta)
  return [name.replace(/(\.token_adapter)?(\.trainable_tokens_delta|(\.base_layer)?\.weight)$/, ''), isDelta]
}

/** Rows to compare: enough to notice another table, few enough to be quick. */
const sampledRows = 64

/**
 * When the vocabulary has grown, PEFT saves the whole embedding beside the trained rows. It adds nothing if its rows are the base's
 * and its new rows are the trained ones.
 */
async function isBaseTable(
  path: string,
  entry: SafetensorsEntry,
  module: string,
  { tokenIds }: TokenRows,
  network: CausalLM,
): Promise<boolean> {
  const weight = network.parameters.get(`${module}.weight`) ?? network.linearLayers.get(module)?.weight
  if (!weight || isQuantized(weight.dtype)) return false
  const [vocabulary, width] = weight.shape as [number, number]
  const [rows, columns] = entry.shape
  if (columns !== width || rows! < vocabulary) return false
  const trained = new Set(tokenIds)
  for (let id = vocabulary; id < rows!; id++) if (!trained.has(id)) return false
  const values = await readFloats(path, entry)
  const step = Math.max(1, Math.floor(vocabulary / sampledRows))
  for (let row = 0; row < vocabulary; row += step) {
    const view = weight.value.rows(row, 1)
    const base = (await view.data()) as Float32Array
    view.dispose()
    // Either side may have been rounded to bfloat16.
    if (base.some((value, i) => Math.abs(value - values[row * width + i]!) > 1e-6 + Math.abs(value) / 128)) return false
  }
  return true
}

/** Writes an adapter folder that PEFT reads. The folder's other files stay. */
export async function saveAdapterFiles(
  folder: string,
  adapter: LoraAdapter | TokensAdapter,
  network: CausalLM,
  baseModel: string | null,
): Promise<void> {
  const parameters = [...adapter.parameters().values()]
  // All copies are queued before anything is waited for: they belong to one moment, even beside a running training.
  const values = await Promise.all(parameters.map((parameter) => parameter.data()))
  const tensors = parameters.map(
    ({ name, shape }, i): SafetensorsSource => ({ name: fileName(adapter, name), dtype: 'F32', shape, data: values[i]! }),
  )
  const config = adapterConfigJson(adapter, network, baseModel)
  const rows = adapter.tokenRows?.rows
  if (rows && isTied(network)) {
    const name = fileName(adapter, `${PEFT_PREFIX}${network.headName}.token_adapter${tokenDelta}`)
    tensors.push({ name, dtype: 'F32', shape: rows.shape, data: values[parameters.indexOf(rows)]! })
  }
  await writeSafetensors(join(folder, ADAPTER_WEIGHTS), tensors, { format: 'pt' })
  if (adapter.tokenRows) await writeNeverGenerated(folder, adapter.tokenRows)
  await writeJsonAtomically(join(folder, ADAPTER_CONFIG), config)
}

/** PEFT's files cannot say that a token is read only. */
async function writeNeverGenerated(folder: string, { tokenIds, head }: TokenRows): Promise<void> {
  const path = join(folder, GENERATION_CONFIG)
  const before = await readJsonObjectIfPresent(path)
  const others = ((before?.suppress_tokens ?? []) as number[]).filter((id) => !tokenIds.includes(id))
  const own = tokenIds.filter((id) => !head?.tokenIds.includes(id))
  if (before || own.length > 0) await writeJsonAtomically(path, { ...before, suppress_tokens: [...others, ...own] })
}
