/** PEFT's adapter_config.json, both ways. */
import { invalidArgument, QuantuneError } from '../errors.js'
import { corruptFile } from '../formats/errors.js'
import { isJsonObject, type JsonObject, readJsonObject } from '../formats/json.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { TokenRows } from './adapter.js'
import type { LoraAdapter, LoraConfig } from './lora.js'
import { isTied } from './token-rows.js'
import type { TokensAdapter } from './tokens.js'

export interface StoredAdapterConfig {
  /** null: the adapter has token rows and nothing else. */
  config: LoraConfig | null
  /** Tokens whose rows the adapter trained, in the order of the rows, by module; '' is the embedding, whatever it is called. */
  tokenIds: ReadonlyMap<string, readonly number[]>
}

/** Fields that say where an adapter came from, not what it computes. */
const informational: ReadonlySet<string> = new Set([
  'auto_mapping',
  'base_model_name_or_path',
  'ensure_weight_tying', // of modules_to_save while they are trained
  'fan_in_fan_out', // follows from the base's architecture
  'inference_mode',
  'megatron_core',
  'peft_type',
  'peft_version',
  'qalora_group_size', // of use_qalora, which is refused
  'revision',
  'runtime_config',
  'task_type',
])

const loraFields: ReadonlySet<string> = new Set([
  'alpha_pattern',
  'bias',
  'exclude_modules',
  'init_lora_weights',
  'layers_to_transform',
  'lora_alpha',
  'lora_dropout',
  'modules_to_save',
  'r',
  'rank_pattern',
  'target_modules',
  'trainable_token_indices',
  'use_rslora',
])

const tokensFields: ReadonlySet<string> = new Set(['init_weights', 'target_modules', 'token_indices'])

/** Ways to begin that leave the base as it is; others (PiSSA, OLoRA, LoftQ, …) also change its weights. */
const harmlessStarts: ReadonlySet<unknown> = new Set([true, false, 'gaussian', 'eva', 'orthogonal', undefined, null])

/**
 * Reads adapter_config.json. A field that quantune does not know is refused by name unless it is off (null, false, empty).
 * @throws ERR_IO, ERR_CORRUPT_FILE, ERR_INVALID_ARGUMENT
 */
export async function readAdapterConfig(path: string): Promise<StoredAdapterConfig> {
  const json = await readJsonObject(path)
  const type = json.peft_type
  if (type !== 'LORA' && type !== 'TRAINABLE_TOKENS') {
    throw invalidArgument(`${path}: peft_type ${JSON.stringify(type)} is not supported; supported: LORA, TRAINABLE_TOKENS`, {
      path,
    })
  }
  const read = type === 'LORA' ? loraFields : tokensFields
  for (const [field, value] of Object.entries(json)) {
    if (informational.has(field) || read.has(field) || isOff(value)) continue
    throw invalidArgument(`${path}: ${field} = ${JSON.stringify(value)} is not supported`, { path, field })
  }
  if (type === 'TRAINABLE_TOKENS') {
    const ids = tokenIdsOf(path, json.token_indices)
    if (ids.length === 0) throw corruptFile(path, 'token_indices is empty')
    const modules = Array.isArray(json.target_modules) ? json.target_modules.map(String) : ['']
    return { config: null, tokenIds: new Map(modules.map((module) => [module, ids])) }
  }
  const { init_lora_weights: start } = json
  if (!harmlessStarts.has(start)) {
    throw invalidArgument(
      `${path}: init_lora_weights = ${JSON.stringify(start)} changes the base's weights, which is not supported`,
      { path },
    )
  }
  return { config: loraConfigOf(json), tokenIds: tokensByModule(path, json.trainable_token_indices) }
}

function isOff(value: unknown): boolean {
  if (value === null || value === false) return true
  return Array.isArray(value) ? value.length === 0 : isJsonObject(value) && Object.keys(value).length === 0
}

function loraConfigOf(json: JsonObject): LoraConfig {
  const optional = (value: unknown) => (value === null ? undefined : value)
  const config = {
    type: 'lora',
    r: optional(json.r),
    loraAlpha: optional(json.lora_alpha),
    loraDropout: optional(json.lora_dropout),
    targetModules: optional(json.target_modules),
    excludeModules: optional(json.exclude_modules),
    useRslora: optional(json.use_rslora),
    bias: optional(json.bias),
    modulesToSave: optional(json.modules_to_save),
    rankPattern: optional(json.rank_pattern),
    alphaPattern: optional(json.alpha_pattern),
    layersToTransform: optional(json.layers_to_transform),
    initLoraWeights:
      typeof json.init_lora_weights === 'boolean' || json.init_lora_weights === 'gaussian' ? json.init_lora_weights : true,
  }
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined)) as LoraConfig
}

function tokensByModule(path: string, value: unknown): Map<string, number[]> {
  if (value === null || value === undefined) return new Map()
  const lists = isJsonObject(value) ? Object.entries(value) : [['', value] as const]
  return new Map(lists.map(([module, ids]) => [module, tokenIdsOf(path, ids)]))
}

function tokenIdsOf(path: string, ids: unknown): number[] {
  const isId = (id: unknown) => Number.isSafeInteger(id) && (id as number) >= 0
  if (Array.isArray(ids) && ids.every(isId) && new Set(ids).size === ids.length) return ids
  throw corruptFile(path, `token indices ${JSON.stringify(ids)} must be a list of different token ids`)
}

/** An adapter's configuration in PEFT's words. */
export function adapterConfigJson(
  adapter: LoraAdapter | TokensAdapter,
  network: CausalLM,
  baseModel: string | null,
): JsonObject {
  return adapter.type === 'lora' ? loraConfigJson(adapter, network, baseModel) : tokensConfigJson(adapter, network, baseModel)
}

function tokensConfigJson({ tokenRows }: TokensAdapter, network: CausalLM, baseModel: string | null): JsonObject {
  const trained = tokensByName(tokenRows, network)
  if (Object.values(trained).some((ids) => ids.length < tokenRows.tokenIds.length)) {
    throw invalidArgument(
      'tokens that are predictable and tokens that are not cannot be saved without another adapter: PEFT has one list for both; add a LoRA adapter and save that',
    )
  }
  return {
    auto_mapping: null,
    base_model_name_or_path: baseModel,
    inference_mode: true,
    init_weights: true,
    peft_type: 'TRAINABLE_TOKENS',
    revision: null,
    target_modules: Object.keys(trained),
    task_type: 'CAUSAL_LM',
    token_indices: tokenRows.tokenIds,
  }
}

/** The tokens of each module that has rows of its own: a tied head follows the embedding. */
function tokensByName({ tokenIds, head }: TokenRows, network: CausalLM): Record<string, readonly number[]> {
  const own = head && !isTied(network) ? { [lastPart(network.headName)]: head.tokenIds } : {}
  return { [lastPart(network.embeddingName)]: tokenIds, ...own }
}

const lastPart = (name: string) => name.slice(name.lastIndexOf('.') + 1)

function loraConfigJson(adapter: LoraAdapter, network: CausalLM, baseModel: string | null): JsonObject {
  const { config } = adapter
  const json: JsonObject = {
    alpha_pattern: config.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: baseModel,
    bias: config.bias,
    exclude_modules: null,
    fan_in_fan_out: [...adapter.layers.keys()].some((module) => network.linearLayers.get(module)!.transposed),
    inference_mode: true,
    init_lora_weights: config.initLoraWeights,
    layer_replication: null,
    layers_pattern: null,
    layers_to_transform: null,
    loftq_config: {},
    lora_alpha: config.loraAlpha,
    lora_dropout: config.loraDropout,
    modules_to_save: config.modulesToSave.length > 0 ? config.modulesToSave : null,
    peft_type: 'LORA',
    r: config.r,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: targetModules(adapter, network),
    task_type: 'CAUSAL_LM',
    use_dora: false,
    use_rslora: config.useRslora,
  }
  if (adapter.tokenRows) {
    const trained = tokensByName(adapter.tokenRows, network)
    json.trainable_token_indices = Object.keys(trained).length > 1 ? trained : adapter.tokenRows.tokenIds
  }
  return json
}

/**
 * The adapted layers as a list, whatever chose them: patterns and exclusions are Python's in PEFT, and 'all-linear' depends on the
 * version. The last parts of the names where they mean the same layers, else the full names.
 */
function targetModules(adapter: LoraAdapter, network: CausalLM): string[] {
  const parts = new Set([...adapter.layers.keys()].map(lastPart))
  const meant = [...network.linearLayers.keys()].filter((name) => parts.has(lastPart(name)))
  return meant.length === adapter.layers.size ? [...parts] : [...adapter.layers.keys()]
}

/** An adapter that was made for another base. */
export function adapterMismatch(
  path: string,
  problem: string,
  details: Record<string, unknown> = {},
  cause?: unknown,
): QuantuneError {
  return new QuantuneError('ERR_ADAPTER_MISMATCH', `${path} does not fit this base: ${problem}`, {
    details: { path, ...details },
    cause,
  })
}
