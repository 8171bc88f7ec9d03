import { z } from 'zod'
import { Parameter } from '../autograd/index.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM, LinearLayerInfo } from '../models/causal-lm.js'
import { type Initializer, initialize } from '../nn/index.js'
import { parseOptions } from '../options.js'
import { isQuantized } from '../tensor/dtype.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type Adapter, type LoraLayer, PEFT_PREFIX, type TokenRows } from './adapter.js'
import { type ModuleSelector, matchesModule, selectModules } from './target-modules.js'
import { disposeTokenRows, parametersOf } from './token-rows.js'

/** How to adapt linear layers by LoRA; names, meanings and defaults are PEFT's. */
export interface LoraConfig {
  type?: 'lora'
  /** Rank of the update. Default: 8. */
  r?: number
  /** The update is scaled by loraAlpha / r. Default: 8. */
  loraAlpha?: number
  /** Probability that an input of the update is dropped in training. Default: 0. */
  loraDropout?: number
  /** Layers by name, a pattern for whole names, or 'all-linear' (all but the head). Default: the architecture's usual ones. */
  targetModules?: ModuleSelector
  /** Layers that are left out although they match. Default: none. */
  excludeModules?: ModuleSelector
  /** Scale by loraAlpha / √r instead (Kalajdzievski 2023). Default: false. */
  useRslora?: boolean
  /** Which biases of the base are trained too: none, all, or those of the adapted layers. Default: 'none'. */
  bias?: 'none' | 'all' | 'lora_only'
  /** Modules of the base of which the adapter trains its own copy, such as lm_head. Default: none. */
  modulesToSave?: readonly string[]
  /** Ranks that differ from r, by name or pattern of the layer. Default: none. */
  rankPattern?: Readonly<Record<string, number>>
  /** Alphas that differ from loraAlpha, by name or pattern of the layer. Default: none. */
  alphaPattern?: Readonly<Record<string, number>>
  /** Numbers of the layers to adapt, or the number of one. Default: all. */
  layersToTransform?: readonly number[] | number
  /** true: A uniform, B zero; 'gaussian': A normal with deviation 1 / r, B zero; false: both uniform. Default: true. */
  initLoraWeights?: boolean | 'gaussian'
  /** Seed of the initial values. Default: that of `setSeed` where a model adds the adapter, else 0. */
  seed?: number
}

const modules = z.union([z.array(z.string()).readonly(), z.instanceof(RegExp), z.string()])

export const loraConfigSchema = z.strictObject({
  type: z.literal('lora').default('lora'),
  r: z.int().min(1).default(8),
  loraAlpha: z.number().positive().default(8),
  loraDropout: z.number().min(0).lt(1).default(0),
  targetModules: modules.optional(),
  excludeModules: modules.optional(),
  useRslora: z.boolean().default(false),
  bias: z.enum(['none', 'all', 'lora_only']).default('none'),
  modulesToSave: z.array(z.string()).readonly().default([]),
  rankPattern: z.record(z.string(), z.int().min(1)).default({}),
  alphaPattern: z.record(z.string(), z.number().positive()).default({}),
  layersToTransform: z
    .union([
      z.array(z.int().min(0)).readonly(),
      z
        .int()
        .min(0)
        .transform((layer) => [layer]),
    ])
    .optional(),
  initLoraWeights: z.union([z.boolean(), z.literal('gaussian')]).default(true),
  seed: z.int().min(0).default(0),
}) satisfies z.ZodType<unknown, LoraConfig>

export type ResolvedLoraConfig = z.output<typeof loraConfigSchema>

/**
 * LoRA (Hu et al. 2021): y = x Wᵀ + s (dropout(x) Aᵀ) Bᵀ for the chosen linear layers, s = alpha / r. Owns A and B, its copies of
 * trained biases and saved modules, and rows for tokens.
 */
export class LoraAdapter implements Adapter {
  readonly type = 'lora'
  readonly name: string
  readonly config: ResolvedLoraConfig
  /** While merged, the base's weights contain the update and the layers get none. */
  merged = false
  readonly layers: ReadonlyMap<string, LoraLayer>
  readonly #replaced = new Map<string, Parameter>()
  readonly #parameters = new Map<string, Parameter>()
  #tokenRows: TokenRows | null = null

  private constructor(name: string, config: ResolvedLoraConfig, layers: Map<string, LoraLayer>) {
    this.name = name
    this.config = config
    this.layers = layers
    for (const { a, b } of layers.values()) {
      this.#parameters.set(a.name, a)
      this.#parameters.set(b.name, b)
    }
  }

  /** Chooses the layers, draws A and B, copies what else is trained. All parameters are trainable, float32, on the base's device. */
  static create(name: string, config: LoraConfig, network: CausalLM): LoraAdapter {
    const resolved = parseOptions(loraConfigSchema, config, 'LoraConfig')
    const chosen = selectModules(network, resolved)
    if (resolved.loraDropout > 0 && chosen.includes(network.headName)) {
      throw invalidArgument(
        `LoraConfig.loraDropout: the head (${network.headName}) cannot be adapted with dropout; set it to 0`,
      )
    }
    const numbers = new Map([...network.linearLayers.keys()].map((module, number) => [module, number]))
    const layers = new Map<string, LoraLayer>()
    for (const module of chosen) {
      layers.set(module, createLayer(module, numbers.get(module)!, network.linearLayers.get(module)!, resolved))
    }
    const adapter = new LoraAdapter(name, resolved, layers)
    adapter.#copyBiases(network)
    adapter.#copyModules(network)
    return adapter
  }

  parameters(): ReadonlyMap<string, Parameter> {
    return this.#parameters
  }

  lora(module: string): LoraLayer | null {
    return this.merged ? null : (this.layers.get(module) ?? null)
  }

  replaced(parameter: string): Parameter | null {
    return this.#replaced.get(parameter) ?? null
  }

  /** The adapter's copies of parameters of the base, by the base's names. */
  replacements(): ReadonlyMap<string, Parameter> {
    return this.#replaced
  }

  get tokenRows(): TokenRows | null {
    return this.#tokenRows
  }

  /** Gives the adapter rows for tokens; they become one of its parameters. */
  setTokenRows(rows: TokenRows): void {
    if (this.#tokenRows) {
      for (const { name } of parametersOf(this.#tokenRows)) this.#parameters.delete(name)
      disposeTokenRows(this.#tokenRows)
    }
    this.#tokenRows = rows
    for (const parameter of parametersOf(rows)) this.#parameters.set(parameter.name, parameter)
  }

  dispose(): void {
    for (const parameter of this.#parameters.values()) parameter.dispose()
    if (this.#tokenRows) disposeTokenRows(this.#tokenRows)
  }

  #copyBiases(network: CausalLM): void {
    const { bias } = this.config
    if (bias === 'none') return
    for (const [name, parameter] of network.parameters) {
      if (!name.endsWith('.bias')) continue
      const module = name.slice(0, -'.bias'.length)
      const adapted = this.layers.has(module)
      if (bias === 'lora_only' && !adapted) continue
      this.#copy(name, parameter, adapted ? `${PEFT_PREFIX}${module}.base_layer.bias` : PEFT_PREFIX + name)
    }
  }

  #copyModules(network: CausalLM): void {
    const parameters = new Map(network.parameters)
    const head = network.linearLayers.get(network.headName)!
    // A tied head has no parameter of its own; saved as a module it gets one.
    parameters.set(`${network.headName}.weight`, head.weight)
    for (const module of this.config.modulesToSave) {
      const found = [...parameters].filter(([name]) => matchesModule([module], name.slice(0, name.lastIndexOf('.'))))
      if (found.length === 0) throw invalidArgument(`LoraConfig.modulesToSave: there is no module "${module}" with parameters`)
      for (const [name, parameter] of found) this.#copy(name, parameter, PEFT_PREFIX + name)
    }
  }

  #copy(name: string, parameter: Parameter, peftName: string): void {
    const copy = scope(() => {
      const { value } = parameter
      const target = Tensor.empty(value.device, value.shape, 'float32', 'adapters')
      if (isQuantized(value.dtype)) value.device.ops.dequantize(target, value)
      else value.device.ops.copy(target, value)
      return keep(target)
    })
    const own = new Parameter(peftName, copy, { requiresGrad: true })
    this.#replaced.set(name, own)
    this.#parameters.set(peftName, own)
  }
}

function createLayer(module: string, site: number, info: LinearLayerInfo, config: ResolvedLoraConfig): LoraLayer {
  const r = patternValue(config.rankPattern, module) ?? config.r
  const alpha = patternValue(config.alphaPattern, module) ?? config.loraAlpha
  const { initLoraWeights: how, seed } = config
  // Kaiming-uniform with a = √5 comes to ±1 / √(number of inputs).
  const uniform = (inputs: number): Initializer => ({ kind: 'uniform', bound: 1 / Math.sqrt(inputs) })
  const initA: Initializer = how === 'gaussian' ? { kind: 'normal', std: 1 / r } : uniform(info.inFeatures)
  const initB: Initializer = how === false ? uniform(r) : { kind: 'zeros' }
  const parameter = (part: string, shape: number[], init: Initializer) => {
    const name = `${PEFT_PREFIX}${module}.${part}.weight`
    const value = keep(Tensor.empty(info.weight.value.device, shape, 'float32', 'adapters'))
    initialize(value, name, init, seed)
    return new Parameter(name, value, { requiresGrad: true })
  }
  return {
    a: parameter('lora_A', [r, info.inFeatures], initA),
    b: parameter('lora_B', [info.outFeatures, r], initB),
    scale: alpha / (config.useRslora ? Math.sqrt(r) : r),
    dropout: config.loraDropout,
    site,
  }
}

/** PEFT's rule: the first key that the end of the layer's name matches as a pattern. */
function patternValue(patterns: Record<string, number>, module: string): number | undefined {
  const key = Object.keys(patterns).find((pattern) => matchesEnd(pattern, module))
  return key === undefined ? undefined : patterns[key]
}

function matchesEnd(pattern: string, module: string): boolean {
  return new RegExp(`^(?:.*\\.)?(?:${pattern})$`).test(module)
}

/**
 * For configurations that are written by hand: PEFT's files may have patterns for layers of other models.
 * @throws ERR_INVALID_ARGUMENT for a pattern that no adapted layer matches
 */
export function refuseIdlePatterns({ config, layers }: LoraAdapter): void {
  for (const option of ['rankPattern', 'alphaPattern'] as const) {
    const idle = Object.keys(config[option]).find(
      (pattern) => ![...layers.keys()].some((module) => matchesEnd(pattern, module)),
    )
    if (idle !== undefined) throw invalidArgument(`LoraConfig.${option}: "${idle}" matches none of the adapted layers`)
  }
}
