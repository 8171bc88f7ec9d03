import { realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { writeJsonAtomically } from '../formats/atomic-file.js'
import { writeFolder } from '../formats/atomic-folder.js'
import { byteLengthOf } from '../formats/safetensors.js'
import { type SafetensorsSource, writeSafetensors } from '../formats/safetensors-writer.js'
import { parseOptions } from '../options.js'
import { isQuantized } from '../tensor/index.js'
import { type WeightExport, weightExports } from './export.js'
import { originDtype } from './load.js'
import type { ModelAdapter, ModelState } from './state.js'

export interface SavePretrainedOptions {
  /** Add this adapter to the weights; true: the active one. Default: the one that is merged in memory, if any. */
  mergeAdapter?: string | boolean
  /**
   * What a quantized weight becomes: 'original' reads it again from the 16- or 32-bit files that the model was loaded from (default
   * where there are such): the better model in most cases, as only the adapter's update is new. 'dequantized' is exactly what was
   * trained and evaluated: take it where the outputs must be the same. Codes are never written.
   */
  base?: 'original' | 'dequantized'
  /** Default: each weight in its file's type. */
  dtype?: 'float32' | 'bfloat16' | 'float16'
  /** Bytes, or '5GB', '500MB'. Default: '5GB'. */
  maxShardSize?: number | string
  signal?: AbortSignal
}

const optionsSchema = z.strictObject({
  mergeAdapter: z.union([z.string(), z.boolean()]).optional(),
  base: z.enum(['original', 'dequantized']).optional(),
  dtype: z.enum(['float32', 'bfloat16', 'float16']).optional(),
  maxShardSize: z
    .union([z.number().positive(), z.string().regex(/^\d+(\.\d+)?\s*[KMG]i?B$/i, "expected bytes or a size such as '5GB'")])
    .default('5GB'),
  signal: z.instanceof(AbortSignal).optional(),
})

const fileDtype = { float32: 'F32', bfloat16: 'BF16', float16: 'F16' } as const
const configDtype = { F32: 'float32', BF16: 'bfloat16', F16: 'float16' } as const

const singleFile = 'model.safetensors'
const indexFile = 'model.safetensors.index.json'

/**
 * Writes a folder in the Hugging Face layout, whole: what was saved there before is there until all of the new model is. Other files of
 * the folder stay.
 */
export async function savePretrained(
  state: ModelState,
  folder: string,
  given: SavePretrainedOptions | undefined,
  active: string | null,
): Promise<void> {
  const options = parseOptions(optionsSchema, given, 'SavePretrainedOptions')
  const adapter = adapterToMerge(state, options.mergeAdapter, active)
  const base = await chooseBase(state, folder, options.base)
  const { exports, vocabSize, untied, unpredictable } = weightExports(state, adapter, base)
  const sources = exports.map((weight) => sourceOf(weight, options.dtype && fileDtype[options.dtype]))
  const { quantization_config: _, torch_dtype: __, ...config } = state.config
  const dtype = options.dtype ?? configDtype[originDtype(state.config)]
  const tied = untied ? { tie_word_embeddings: false } : {}
  const generationConfig = generationConfigOf(state, unpredictable)
  try {
    await writeFolder(
      folder,
      async (fresh) => {
        await writeWeights(fresh, sources, bytesOfSize(options.maxShardSize), options.signal)
        if (state.hasTokenizer) await state.tokenizer.save(fresh)
        if (generationConfig) await writeJsonAtomically(join(fresh, 'generation_config.json'), generationConfig)
        await writeJsonAtomically(join(fresh, 'config.json'), { ...config, ...tied, vocab_size: vocabSize, dtype })
      },
      isModelFile,
    )
  } finally {
    for (const weight of exports) weight.close()
  }
}

/** What would be read with a model, or instead of it, although it belongs to the one that was there before. */
export function isModelFile(name: string): boolean {
  return /^(config|generation_config|model\.safetensors\.index)\.json$|^model(-\d+-of-\d+)?\.safetensors$/.test(name)
}

function adapterToMerge(state: ModelState, wanted: string | boolean | undefined, active: string | null): ModelAdapter | null {
  if (wanted === undefined) return state.merged?.adapter ?? null
  if (wanted === false) return null
  const name = wanted === true ? active : wanted
  if (name === null) throw invalidArgument('SavePretrainedOptions.mergeAdapter: no adapter is active; name one')
  return state.adapterNamed(name)
}

async function chooseBase(
  state: ModelState,
  folder: string,
  wanted: 'original' | 'dequantized' | undefined,
): Promise<'original' | 'dequantized'> {
  const quantized = [...state.network.parameters.values()].filter(({ name, dtype }) => {
    return isQuantized(state.merged?.replaced.get(name)?.dtype ?? dtype)
  })
  const available = quantized.every(({ name }) => state.origins.get(name)?.stored)
  if (wanted === 'original' && !available) {
    throw invalidArgument("SavePretrainedOptions.base: this model did not come from 16- or 32-bit files; use 'dequantized'")
  }
  const base = wanted ?? (available ? 'original' : 'dequantized')
  if (base === 'original' && quantized.length > 0) await refuseOwnFiles(state, folder, quantized[0]!.name)
  return base
}

/** The weights are streamed from these files while the new ones are written. */
async function refuseOwnFiles(state: ModelState, folder: string, parameter: string): Promise<void> {
  const source = await realpath(join(state.origins.get(parameter)!.stored!.path, '..')).catch(() => null)
  const target = await realpath(folder).catch(() => null)
  if (source !== null && source === target)
    throw invalidArgument(`savePretrained: ${folder} holds the files that the model was loaded from`)
}

function sourceOf(weight: WeightExport, dtype: WeightExport['dtype'] | undefined): SafetensorsSource {
  return { name: weight.name, dtype: dtype ?? weight.dtype, shape: weight.shape, data: weight.read }
}

export function bytesOfSize(size: number | string): number {
  if (typeof size === 'number') return size
  const [, number, unit, binary] = /^([\d.]+)\s*([KMG])(i?)B$/i.exec(size)!
  const power = { K: 1, M: 2, G: 3 }[unit!.toUpperCase()]!
  return Number(number) * (binary ? 1024 : 1000) ** power
}

async function writeWeights(
  folder: string,
  sources: SafetensorsSource[],
  maxShardSize: number,
  signal?: AbortSignal,
): Promise<void> {
  const shards = split(sources, maxShardSize)
  const names = shards.length === 1 ? [singleFile] : shards.map((_, i) => shardName(i, shards.length))
  for (const [i, shard] of shards.entries())
    await writeSafetensors(join(folder, names[i]!), shard, { format: 'pt' }, { signal })
  if (shards.length === 1) return
  const weightMap = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]!])))
  const total = sources.reduce((sum, { dtype, shape }) => sum + byteLengthOf(dtype, shape), 0)
  await writeJsonAtomically(join(folder, indexFile), { metadata: { total_size: total }, weight_map: weightMap })
}

function split(sources: SafetensorsSource[], maxShardSize: number): SafetensorsSource[][] {
  const shards: SafetensorsSource[][] = [[]]
  let size = 0
  for (const source of sources) {
    const bytes = byteLengthOf(source.dtype, source.shape)
    if (size > 0 && size + bytes > maxShardSize) {
      shards.push([])
      size = 0
    }
    shards[shards.length - 1]!.push(source)
    size += bytes
  }
  return shards
}

function shardName(index: number, count: number): string {
  const number = (n: number) => String(n).padStart(5, '0')
  return `model-${number(index + 1)}-of-${number(count)}.safetensors`
}

function generationConfigOf(state: ModelState, unpredictable: readonly number[]): Record<string, unknown> | null {
  const config = { ...state.generationConfig }
  if (unpredictable.length > 0) {
    config.suppress_tokens = [...new Set([...((config.suppress_tokens ?? []) as number[]), ...unpredictable])]
  }
  return Object.keys(config).length > 0 ? config : null
}
