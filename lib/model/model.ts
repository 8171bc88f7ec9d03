import type { Parameter } from '../autograd/index.js'
import type { BatchData } from '../data/batch-data.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { invalidArgument } from '../errors.js'
import { openWeightFiles } from '../formats/weight-files.js'
// Generation asks for nothing of a model but its type, so neither module needs the other's first.
import {
  type Generation,
  type GenerationConfig,
  Generator,
  type Prompt,
  type Score,
  type ScoreOptions,
  type StreamedToken,
} from '../generation/index.js'
import { architectureOf, type CausalLM } from '../models/index.js'
import { parseOptions } from '../options.js'
import type { Adapter } from '../peft/adapter.js'
import type { LoraConfig } from '../peft/lora.js'
import { parseQuantization, parseStoredQuantization, type ResolvedQuantization } from '../quantization/config.js'
import { Device } from '../tensor/device.js'
import { addAdapter, type LoadAdapterOptions, loadAdapter, mergeAdapter, saveAdapter, unmergeAdapter } from './adapters.js'
import { type ForwardOptions, type ForwardResult, forward } from './forward.js'
import { initializeNetwork, loadNetwork } from './load.js'
import { type EstimateOptions, estimateMemory, type MemoryEstimate } from './memory.js'
import { type FromConfigOptions, fromConfigOptionsSchema, type ModelOptions, modelOptionsSchema } from './options.js'
import { type SavePretrainedOptions, savePretrained } from './save.js'
import { checkVocabulary, readModelFolder, readTokenizer, resolveFolder } from './source.js'
import { type ModelParts, ModelState } from './state.js'
import { type AddTokensOptions, addTokens } from './tokens.js'

/**
 * A causal language model with its tokenizer and adapters. Calls on it may overlap (train, generate, score); each sees the adapter
 * that was chosen when it was called.
 */
export class Model implements AsyncDisposable {
  readonly #state: ModelState
  /** The adapter of a view; undefined: whatever the model's default is. */
  readonly #bound: string | null | undefined

  private constructor(state: ModelState, bound?: string | null) {
    this.#state = state
    this.#bound = bound
  }

  /**
   * Loads a model from a folder in the Hugging Face layout, or from the Hub by its id.
   * @throws ERR_UNSUPPORTED_ARCHITECTURE, ERR_UNSUPPORTED_QUANTIZATION, ERR_CORRUPT_FILE, ERR_IO, ERR_HUB_NOT_FOUND,
   *   ERR_HUB_UNAUTHORIZED, ERR_OUT_OF_MEMORY; `signal.reason` when aborted
   */
  static async fromPretrained(source: string, options: ModelOptions = {}): Promise<Model> {
    const {
      device: deviceName,
      dtype,
      quantization,
      trainable,
      signal,
      onProgress,
      ...hub
    } = parseOptions(modelOptionsSchema, options, 'ModelOptions')
    const wanted = parseQuantization(quantization)
    const folder = await resolveFolder(source, { ...hub, signal, onProgress })
    const { config, generationConfig } = await readModelFolder(folder)
    const architecture = architectureOf(config)
    const { vocabSize } = architecture.parseConfig(config)
    const stored = chooseQuantization(wanted, parseStoredQuantization(config))
    refuseTrainingQuantized(trainable, stored ?? wanted)
    const tokenizer = await readTokenizer(folder, vocabSize)
    const files = await openWeightFiles(folder)
    const device = await Device.open(deviceName)
    const compute = dtype === 'auto' ? autoDtype(device) : dtype
    const loaded = await loadNetwork(files, {
      architecture,
      config,
      device,
      dtype: compute,
      quantization: stored ? null : wanted,
      stored,
      signal,
      onProgress,
    })
    const parts = { device, dtype: compute, architecture, ...loaded, config, generationConfig, tokenizer, source }
    return Model.#create(parts, trainable)
  }

  /**
   * A new model with random weights, drawn by seed and parameter name.
   * @param config a Hugging Face config object, as in config.json
   */
  static async fromConfig(config: Readonly<Record<string, unknown>>, options: FromConfigOptions = {}): Promise<Model> {
    const parsed = parseOptions(fromConfigOptionsSchema, options, 'FromConfigOptions')
    parsed.signal?.throwIfAborted()
    const architecture = architectureOf(config)
    const { vocabSize } = architecture.parseConfig(config)
    if (parsed.tokenizer) checkVocabulary('FromConfigOptions.tokenizer', parsed.tokenizer, vocabSize)
    const quantization = parseQuantization(parsed.quantization)
    refuseTrainingQuantized(parsed.trainable, quantization)
    const device = await Device.open(parsed.device)
    const dtype = parsed.dtype === 'auto' ? autoDtype(device) : parsed.dtype
    const { seed, trainable, generationConfig } = parsed
    const loaded = initializeNetwork({ architecture, config, device, dtype, quantization, seed, trainable })
    await device.settled()
    const tokenizer = parsed.tokenizer ?? null
    const parts = { device, dtype, architecture, ...loaded, config, generationConfig, tokenizer, source: null }
    const model = Model.#create(parts, trainable)
    if (parsed.signal?.aborted) await model.dispose()
    parsed.signal?.throwIfAborted()
    return model
  }

  /** Bytes by purpose that loading and training will need, from the files' headers alone. */
  static estimateMemory(source: string, options: EstimateOptions = {}): Promise<MemoryEstimate> {
    return estimateMemory(source, options)
  }

  static #create(parts: ModelParts, trainable: boolean): Model {
    const model = new Model(new ModelState(parts))
    if (trainable) for (const parameter of parts.network.parameters.values()) parameter.requiresGrad = true
    return model
  }

  get device(): Device {
    return this.#state.device
  }

  get network(): CausalLM {
    return this.#state.network
  }

  /** The type of compute and activations. */
  get dtype(): 'float32' | 'bfloat16' {
    return this.#state.dtype
  }

  /** @throws ERR_INVALID_ARGUMENT when the model came without one */
  get tokenizer(): Tokenizer {
    return this.#state.tokenizer
  }

  /** config.json as it was read. */
  get config(): Readonly<Record<string, unknown>> {
    return this.#state.config
  }

  /** generation_config.json as it was read, with the tokens that were added since as `suppress_tokens`. */
  get generationConfig(): Record<string, unknown> {
    return this.#state.generationConfig
  }

  /** Names of the adapters. */
  get adapters(): readonly string[] {
    return [...this.#state.adapters.keys()]
  }

  /** The adapter that calls use unless they say otherwise; null: none. */
  get activeAdapter(): string | null {
    return this.#bound === undefined ? this.#state.defaultAdapter : this.#bound
  }

  /** Bytes in use on the model's device by purpose, now and at the peak. */
  memoryUsage(): ReturnType<Device['memoryUsage']> {
    return this.#state.device.memoryUsage()
  }

  /**
   * The base's parameters under their Hugging Face names, then those of the active adapter under PEFT's. Set `requiresGrad` to train
   * one; a 16-bit parameter becomes float32 by that.
   */
  parameters(): Map<string, Parameter> {
    const own = this.resolveAdapter(undefined)?.parameters() ?? []
    return new Map([...this.#state.network.parameters, ...own])
  }

  /** What a training with this adapter updates: its trainable parameters, and those of the base. */
  trainableParameters(adapter?: string | null): Parameter[] {
    const own = this.resolveAdapter(adapter)?.parameters().values() ?? []
    return [...this.#state.network.parameters.values(), ...own].filter(({ requiresGrad }) => requiresGrad)
  }

  /** undefined: the active adapter; null: the bare base, which has an adapter only for the rows of added tokens. */
  resolveAdapter(name: string | null | undefined): Adapter | null {
    return this.#state.resolve(name === undefined ? this.activeAdapter : name)
  }

  /**
   * Queues a forward pass; nothing is waited for. The adapter's dropout is applied when `dropoutRng` is given.
   * @throws ERR_INVALID_ARGUMENT for a batch that is empty or does not fit, ERR_CONTEXT_LENGTH, ERR_DISPOSED
   */
  forward(batch: BatchData, options: ForwardOptions = {}): ForwardResult {
    const adapter = this.resolveAdapter(options.adapter)
    return forward(this.#state.device, this.#state.network, adapter, batch, options)
  }

  /** Adds a new adapter; its start depends on the seed and the layers' names alone. The first adapter becomes the active one. */
  addAdapter(config: LoraConfig, name = 'default'): void {
    this.#state.assertLive()
    addAdapter(this.#state, config, name)
  }

  /**
   * Loads an adapter from a folder that PEFT or quantune wrote.
   * @throws ERR_ADAPTER_MISMATCH when it was made for another base; ERR_INVALID_ARGUMENT for a field that is not supported, by name
   */
  async loadAdapter(folder: string, options?: LoadAdapterOptions): Promise<void> {
    this.#state.assertLive()
    await this.#during('load an adapter', () => loadAdapter(this.#state, folder, options))
  }

  /** Writes adapter_config.json and adapter_model.safetensors as PEFT does; the tokenizer too when tokens were added. */
  async saveAdapter(folder: string, name = this.activeAdapter): Promise<void> {
    this.#state.assertLive()
    if (name === null) throw invalidArgument('saveAdapter: no adapter is active; name one')
    await this.#during('save', () => saveAdapter(this.#state, folder, name))
  }

  /** Chooses the adapter of calls that name none; null: the bare base. */
  setAdapter(name: string | null): void {
    this.#state.assertLive()
    if (this.#bound !== undefined) throw invalidArgument('setAdapter: this view is bound to its adapter')
    if (name !== null) this.#state.adapterNamed(name)
    this.#state.defaultAdapter = name
  }

  /** A view on the same weights whose calls use this adapter. Disposing of a view does nothing. */
  withAdapter(name: string | null): Model {
    this.#state.resolve(name)
    return new Model(this.#state, name)
  }

  /**
   * Adds the adapter to the weights in memory, once no call is running: its calls then cost nothing extra. On a quantized base the
   * adapted weights are held in the compute dtype meanwhile. Awaited in a callback of a training it would wait for ever, as the
   * training waits for the callback.
   */
  async mergeAdapter(name: string): Promise<void> {
    this.#state.assertLive()
    await mergeAdapter(this.#state, name)
  }

  /** Puts the weights back exactly as they were, once no call is running. */
  async unmergeAdapter(name: string): Promise<void> {
    this.#state.assertLive()
    await unmergeAdapter(this.#state, name)
  }

  /**
   * Adds tokens to the vocabulary, with rows that the adapters train. By default they are read and never generated.
   * @returns the tokens' ids
   * @throws ERR_BUSY while a call on this model is running
   */
  addTokens(tokens: readonly string[], options?: AddTokensOptions): number[] {
    this.#state.assertLive()
    return addTokens(this.#state, tokens, options)
  }

  /** Writes the model's folder: weights, config, tokenizer, chat template, generation config. */
  async savePretrained(folder: string, options?: SavePretrainedOptions): Promise<void> {
    this.#state.assertLive()
    await this.#during('save', () => savePretrained(this.#state, folder, options, this.activeAdapter))
  }

  /** Short for `new Generator(model).generate(…)`. */
  generate(prompt: Prompt, options?: GenerationConfig): Promise<Generation>
  generate(prompts: readonly Prompt[], options?: GenerationConfig): Promise<Generation[]>
  generate(prompt: Prompt | readonly Prompt[], options?: GenerationConfig): Promise<Generation | Generation[]> {
    return new Generator(this).generate(prompt as Prompt, options)
  }

  /** Short for `new Generator(model).stream(…)`. */
  stream(prompt: Prompt, options?: GenerationConfig): AsyncGenerator<StreamedToken, void, undefined> {
    return new Generator(this).stream(prompt, options)
  }

  /** Short for `new Generator(model).score(…)`. */
  score(prompt: Prompt, continuations: readonly string[], options?: ScoreOptions): Promise<Score[]>
  score(prompts: readonly Prompt[], continuations: readonly (readonly string[])[], options?: ScoreOptions): Promise<Score[][]>
  score(
    prompt: Prompt | readonly Prompt[],
    continuations: readonly string[] | readonly (readonly string[])[],
    options?: ScoreOptions,
  ): Promise<Score[] | Score[][]> {
    return new Generator(this).score(prompt as Prompt, continuations as readonly string[], options)
  }

  /**
   * Marks a call that uses the weights over several turns of the event loop: merging and disposing wait until the returned function
   * was called.
   * @param exclusive only one call with this key may run at a time
   * @throws ERR_BUSY, ERR_DISPOSED
   */
  beginCall(kind: string, exclusive?: string): () => void {
    this.#state.assertOpen()
    return this.#state.calls.begin(kind, exclusive)
  }

  /** Frees the weights and adapters, once the calls in flight have ended; new calls are refused at once (ERR_DISPOSED). */
  async dispose(): Promise<void> {
    if (this.#bound === undefined) await this.#state.dispose()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  async #during<T>(kind: string, work: () => Promise<T>): Promise<T> {
    const end = this.#state.calls.begin(kind)
    try {
      return await work()
    } finally {
      end()
    }
  }
}

function autoDtype(device: Device): 'float32' | 'bfloat16' {
  return device.name.startsWith('cuda') || device.variant === 'avx512bf16' ? 'bfloat16' : 'float32'
}

function refuseTrainingQuantized(trainable: boolean, quantization: ResolvedQuantization | null): void {
  if (!trainable || !quantization) return
  throw invalidArgument(
    `trainable: ${quantization.type} weights cannot be trained; train an adapter, or load without quantization`,
  )
}

/** What the folder's weights are quantized by already, if that agrees with what was asked for. */
function chooseQuantization(
  wanted: ResolvedQuantization | null,
  stored: ResolvedQuantization | null,
): ResolvedQuantization | null {
  if (wanted && stored && wanted.type !== stored.type) {
    throw invalidArgument(`quantization: the folder's weights are ${stored.type} already and cannot become ${wanted.type}`)
  }
  return stored
}
