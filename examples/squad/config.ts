// The workflow's settings: defaults, then config.yaml, then flags.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { parse } from 'yaml'
import type { GenerationConfig, LoraConfig, ModelOptions, TrainingArguments } from '../../lib/index.js'

export interface Config {
  model: string
  data: string
  output: string
  load: ModelOptions
  dataset: {
    turns: 'single' | 'multi'
    reasoningTokens: number
    numberedTokens: boolean
    every: number
    validation: number
    seed: number
  }
  lora: LoraConfig
  training: TrainingArguments
  maxLength: number
  sharePrefixes: boolean | 'auto'
  evaluation: { forcedStart: boolean; batchSize: number; generation: GenerationConfig }
}

/** A flag, what it sets (a path in the config, or null: the program reads it itself), and what it means. */
interface Flag {
  type: 'string' | 'number' | 'boolean'
  path: string | null
  help: string
}

const COMMON: Record<string, Flag> = {
  config: { type: 'string', path: null, help: 'YAML file (default: config.yaml beside the program)' },
  model: { type: 'string', path: 'model', help: 'folder or Hub id of the model' },
  data: { type: 'string', path: 'data', help: 'folder with train.json and dev.json' },
  output: { type: 'string', path: 'output', help: 'folder for everything that is written' },
  device: { type: 'string', path: 'load.device', help: 'auto, cpu, cuda' },
  dtype: { type: 'string', path: 'load.dtype', help: 'auto, float32, bfloat16' },
  quantization: { type: 'string', path: 'load.quantization', help: 'none, nf4, fp4' },
}

export const DATASET_FLAGS: Record<string, Flag> = {
  turns: { type: 'string', path: 'dataset.turns', help: 'single or multi' },
  'reasoning-tokens': { type: 'number', path: 'dataset.reasoningTokens', help: 'number of reasoning tokens before an answer' },
  'numbered-tokens': { type: 'boolean', path: 'dataset.numberedTokens', help: 'numbered reasoning tokens instead of one' },
  every: { type: 'number', path: 'dataset.every', help: 'take every n-th training question' },
  validation: { type: 'number', path: 'dataset.validation', help: 'share of contexts kept for validation' },
}

export const TRAINING_FLAGS: Record<string, Flag> = {
  'max-steps': { type: 'number', path: 'training.maxSteps', help: 'optimizer steps' },
  epochs: { type: 'number', path: 'training.numTrainEpochs', help: 'passes over the data' },
  'learning-rate': { type: 'number', path: 'training.learningRate', help: 'peak learning rate' },
  'batch-size': { type: 'number', path: 'training.perDeviceTrainBatchSize', help: 'samples of an optimizer step' },
  seed: { type: 'number', path: 'training.seed', help: 'order of the samples and start of the adapter' },
}

export const EVALUATION_FLAGS: Record<string, Flag> = {
  beams: { type: 'number', path: 'evaluation.generation.numBeams', help: 'beams; 1 is greedy' },
  'max-new-tokens': { type: 'number', path: 'evaluation.generation.maxNewTokens', help: 'length of an answer' },
  'forced-start': { type: 'boolean', path: 'evaluation.forcedStart', help: "give the answer's start" },
  'batch-size': { type: 'number', path: 'evaluation.batchSize', help: 'questions answered together' },
}

// What goes wrong here is for the user to put right: the message is enough, but for those who ask for more.
process.on('uncaughtException', (error) => {
  console.error(process.env.QUANTUNE_LOG === 'debug' ? error : `${error.name}: ${error.message}`)
  process.exit(1)
})

/** Parses the command line and reads the configuration; `--help` prints the flags and ends the program. */
export function configure(usage: string, flags: Record<string, Flag> = {}) {
  const known: Record<string, Flag> = { ...COMMON, ...flags }
  const { values, positionals } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      ...Object.fromEntries(
        Object.entries(known).map(([name, { type }]) => [name, { type: type === 'boolean' ? 'boolean' : 'string' } as const]),
      ),
    },
    allowPositionals: true,
  })
  if (values.help) {
    const lines = Object.entries(known).map(
      ([name, { type, help }]) => `  --${name}${type === 'boolean' ? '' : ` ${type}`}`.padEnd(30) + help,
    )
    console.log([`usage: ${usage}`, ...lines].join('\n'))
    process.exit(0)
  }
  const given = values as Record<string, string | boolean | undefined>
  const config = read((given.config as string | undefined) ?? beside('config.yaml'))
  for (const [name, { type, path }] of Object.entries(known)) {
    const value = given[name]
    if (value !== undefined && path !== null) set(config, path, type === 'number' ? number(name, String(value)) : value)
  }
  if (!['single', 'multi'].includes(config.dataset.turns))
    throw new Error(`turns must be single or multi, got ${config.dataset.turns}`)
  return { config, flags: given, positionals }
}

function read(path: string): Config {
  const config = parse(readFileSync(path, 'utf8')) as Record<string, unknown>
  const reference = parse(readFileSync(beside('config.yaml'), 'utf8')) as Record<string, unknown>
  for (const key of Object.keys(config)) {
    if (!(key in reference))
      throw new Error(`${path}: unknown setting "${key}"; known are ${Object.keys(reference).join(', ')}`)
  }
  return merge(reference, config) as unknown as Config
}

/** The file beside this program's source: compiled, the program lies in dist/examples/squad. */
function beside(name: string): string {
  const path = fileURLToPath(new URL(name, import.meta.url))
  return path.replace(/([\\/])dist\1examples\1/, '$1examples$1')
}

function merge(base: Record<string, unknown>, over: Record<string, unknown>): Record<string, unknown> {
  const merged = { ...base }
  for (const [key, value] of Object.entries(over)) {
    const former = merged[key]
    merged[key] = isObject(former) && isObject(value) ? merge(former, value) : value
  }
  return merged
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function set(target: object, path: string, value: unknown): void {
  const keys = path.split('.')
  const last = keys.pop()!
  const owner = keys.reduce<Record<string, unknown>>(
    (at, key) => at[key] as Record<string, unknown>,
    target as Record<string, unknown>,
  )
  owner[last] = value
}

function number(name: string, value: string): number {
  const result = Number(value)
  if (value.trim() === '' || !Number.isFinite(result)) throw new Error(`--${name} must be a number, got "${value}"`)
  return result
}
