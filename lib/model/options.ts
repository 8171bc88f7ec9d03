import { z } from 'zod'
import type { Tokenizer } from '../data/tokenizer.js'
import { getSeed } from '../env.js'
import type { Quantization } from '../quantization/config.js'

export type Progress = {
  stage: 'download' | 'load' | 'quantize'
  /** The file that is being read. */
  file: string
  loadedBytes: number
  totalBytes: number
}

/** Where a Hub model comes from; a folder needs none of these. */
export interface HubOptions {
  /** Branch, tag or commit. Default: 'main'. */
  revision?: string
  /** Access token. Default: HF_TOKEN, then the file that `hf auth login` wrote. */
  token?: string
  /** Default: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub. */
  cacheDir?: string
  /** Never ask the network. Default: HF_HUB_OFFLINE. */
  localFilesOnly?: boolean
}

export interface ModelOptions extends HubOptions {
  /** 'auto' (default) takes a usable GPU, else the CPU. */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}`
  /**
   * Type of compute and activations; frozen weights keep their file's type. 'auto' (default): bfloat16 on CUDA and on CPUs with
   * AVX-512-BF16, else float32.
   */
  dtype?: 'auto' | 'float32' | 'bfloat16'
  /** Default: 'none'; a folder that bitsandbytes quantized loads as it is. */
  quantization?: Quantization
  /** Make all parameters trainable (full fine-tuning): they become float32. Default: false. */
  trainable?: boolean
  /** Aborts the download or loading; the call rejects with `signal.reason`. */
  signal?: AbortSignal
  /** Called for each piece that was downloaded, loaded or quantized. */
  onProgress?: (progress: Progress) => void
}

export interface FromConfigOptions extends Omit<ModelOptions, keyof HubOptions | 'onProgress'> {
  /** Seed of the weights. Default: that of `setSeed`. */
  seed?: number
  /** A new model has no files; give it the tokenizer it shall use. */
  tokenizer?: Tokenizer
  /** Content of generation_config.json. */
  generationConfig?: Record<string, unknown>
}

const isFunction = z.custom<(progress: Progress) => void>((value) => typeof value === 'function', 'expected a function')

const common = {
  device: z
    .string()
    // For tests: cpu-late, the CPU, completing late; cuda-emulated, the CUDA kernels on the CPU.
    .regex(/^(auto|cpu|cpu-late|cuda(:\d+)?|cuda-emulated)$/, "expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    .default('auto'),
  dtype: z.enum(['auto', 'float32', 'bfloat16']).default('auto'),
  quantization: z.custom<Quantization>().optional(), // checked by parseQuantization
  trainable: z.boolean().default(false),
  signal: z.instanceof(AbortSignal).optional(),
}

export const hubOptionsSchema = z.strictObject({
  revision: z.string().min(1).optional(),
  token: z.string().min(1).optional(),
  cacheDir: z.string().min(1).optional(),
  localFilesOnly: z.boolean().optional(),
})

export const modelOptionsSchema = z.strictObject({
  ...common,
  ...hubOptionsSchema.shape,
  onProgress: isFunction.optional(),
})

export const fromConfigOptionsSchema = z.strictObject({
  ...common,
  seed: z.int().min(0).default(getSeed),
  tokenizer: z
    .custom<Tokenizer>((value) => typeof value === 'object' && value !== null && 'encode' in value, 'expected a Tokenizer')
    .optional(),
  generationConfig: z.record(z.string(), z.unknown()).default({}),
})

export type ResolvedModelOptions = z.output<typeof modelOptionsSchema>
export type ResolvedFromConfigOptions = z.output<typeof fromConfigOptionsSchema>
