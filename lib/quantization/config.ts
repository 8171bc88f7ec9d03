import { z } from 'zod'
import { invalidArgument, QuantuneError } from '../errors.js'
import { isJsonObject } from '../formats/json.js'
import { parseOptions } from '../options.js'

/** 4-bit quantization of the frozen linear layers (QLoRA, Dettmers et al. 2023). */
export interface FourBitConfig {
  type: 'nf4' | 'fp4'
  /** Elements that share a scale: 64 (default) or 128. */
  blockSize?: 64 | 128
  /** Quantize the scales themselves to 8 bits. Default: true. */
  doubleQuant?: boolean
  /** Modules that stay as they are: a name, its last part or its first parts. Default: `['lm_head']`. */
  skipModules?: readonly string[]
}

/**
 * 8-bit quantization of the frozen linear layers and, as they are used, of their inputs (LLM.int8, Dettmers et al. 2022). What comes
 * out of a row may depend on the rows that are computed with it: an outlier in one of them keeps its column from being quantized.
 */
export interface Int8Config {
  type: 'int8'
  /** Columns of a layer's input with a magnitude of at least this stay in floating point; 0: none do. Default: 6. */
  threshold?: number
  /** As for 4 bits. */
  skipModules?: readonly string[]
}

export type QuantizationConfig = FourBitConfig | Int8Config

/** The fields of a bitsandbytes config (`BitsAndBytesConfig`, or `quantization_config` in config.json) that quantune reads. */
export interface BitsAndBytesConfig {
  load_in_4bit?: boolean
  load_in_8bit?: boolean
  bnb_4bit_quant_type?: 'nf4' | 'fp4'
  bnb_4bit_use_double_quant?: boolean
  llm_int8_threshold?: number
  llm_int8_skip_modules?: readonly string[] | null
  [field: string]: unknown
}

export type Quantization = 'none' | 'nf4' | 'fp4' | 'int8' | QuantizationConfig | BitsAndBytesConfig

export interface ResolvedFourBit {
  readonly type: 'nf4' | 'fp4'
  readonly blockSize: 64 | 128
  readonly doubleQuant: boolean
  readonly skipModules: readonly string[]
}

export interface ResolvedInt8 {
  readonly type: 'int8'
  readonly threshold: number
  readonly skipModules: readonly string[]
}

export type ResolvedQuantization = ResolvedFourBit | ResolvedInt8

/** bitsandbytes' own. */
export const defaultThreshold = 6

const thresholdSchema = z.number().min(0).max(3.4e38).default(defaultThreshold)
const skipModulesSchema = z.array(z.string()).default(['lm_head'])

const fourBitSchema = z.strictObject({
  type: z.enum(['nf4', 'fp4']),
  blockSize: z.union([z.literal(64), z.literal(128)]).default(64),
  doubleQuant: z.boolean().default(true),
  skipModules: skipModulesSchema,
})
const int8Schema = z.strictObject({ type: z.literal('int8'), threshold: thresholdSchema, skipModules: skipModulesSchema })

/** The fields that decide what the codes mean; all others are about compute and storage elsewhere. */
const bitsAndBytesSchema = z.strictObject({
  load_in_4bit: z.boolean().optional(),
  load_in_8bit: z.boolean().optional(),
  bnb_4bit_quant_type: z.enum(['nf4', 'fp4']).default('fp4'),
  bnb_4bit_use_double_quant: z.boolean().default(false),
  llm_int8_threshold: thresholdSchema,
  llm_int8_has_fp16_weight: z.boolean().default(false),
  llm_int8_skip_modules: z.array(z.string()).nullish(),
})

/**
 * Checks the `quantization` option.
 * @returns null for 'none'
 * @throws ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED_QUANTIZATION for a method that is not there, by name
 */
export function parseQuantization(value: Quantization | undefined): ResolvedQuantization | null {
  if (value === undefined || value === 'none') return null
  if (isJsonObject(value) && isBitsAndBytes(value)) return parseBitsAndBytes(value)
  if (isJsonObject(value) && typeof value.quant_method === 'string') throw unsupportedMethod(value.quant_method)
  const options = typeof value === 'string' ? { type: value } : value
  if (isJsonObject(options) && options.type === 'int8') return parseOptions(int8Schema, options, 'QuantizationConfig')
  return parseOptions(fourBitSchema, options, 'QuantizationConfig')
}

/**
 * Checks `quantization_config` of a config.json: how the folder's weights were quantized.
 * @returns null when there is none
 */
export function parseStoredQuantization(config: Readonly<Record<string, unknown>>): ResolvedQuantization | null {
  const stored = config.quantization_config ?? config.compression_config
  if (stored === undefined || stored === null) return null
  if (isJsonObject(stored) && isBitsAndBytes(stored)) return parseBitsAndBytes(stored)
  throw unsupportedMethod(isJsonObject(stored) && typeof stored.quant_method === 'string' ? stored.quant_method : 'unknown')
}

function isBitsAndBytes(value: Record<string, unknown>): boolean {
  if (value.quant_method !== undefined) return /^bitsandbytes/.test(String(value.quant_method))
  return 'load_in_4bit' in value || 'load_in_8bit' in value || 'bnb_4bit_quant_type' in value
}

function parseBitsAndBytes(value: Record<string, unknown>): ResolvedQuantization {
  const known = Object.entries(value).filter(([field]) => field in bitsAndBytesSchema.shape)
  const config = parseOptions(bitsAndBytesSchema, Object.fromEntries(known), 'quantization_config')
  const skipModules = config.llm_int8_skip_modules ?? ['lm_head']
  if (config.load_in_8bit) {
    if (config.load_in_4bit) throw invalidArgument('quantization_config: load_in_4bit and load_in_8bit exclude each other')
    if (config.llm_int8_has_fp16_weight) throw unsupportedMethod('LLM.int8 with 16-bit weights (llm_int8_has_fp16_weight)')
    return { type: 'int8', threshold: config.llm_int8_threshold, skipModules }
  }
  const { bnb_4bit_quant_type: type, bnb_4bit_use_double_quant: doubleQuant } = config
  return { type, blockSize: 64, doubleQuant, skipModules }
}

const methodNames: Record<string, string> = {
  gptq: 'GPTQ',
  awq: 'AWQ',
  fp8: 'FP8',
  fbgemm_fp8: 'FP8 (FBGEMM)',
  mxfp4: 'MXFP4',
  'compressed-tensors': 'compressed-tensors',
  unknown: 'an unnamed method',
}

export function unsupportedMethod(method: string): QuantuneError {
  const name = methodNames[method.toLowerCase()] ?? method
  const message = `quantization by ${name} is not supported; supported: nf4, fp4 and int8 (bitsandbytes), or unquantized weights`
  return new QuantuneError('ERR_UNSUPPORTED_QUANTIZATION', message, { details: { method } })
}

/** Whether a list of modules names this one: in full, by its last parts, or by its first parts. */
export function namesModule(list: readonly string[], module: string): boolean {
  return list.some((entry) => module === entry || module.endsWith(`.${entry}`) || module.startsWith(`${entry}.`))
}
