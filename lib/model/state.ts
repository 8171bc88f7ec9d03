import type { Tokenizer } from '../data/tokenizer.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import type { Architecture, CausalLM } from '../models/index.js'
import type { Adapter } from '../peft/adapter.js'
import type { LoraAdapter } from '../peft/lora.js'
import type { TokensAdapter } from '../peft/tokens.js'
import { formatTraces } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import type { Tensor } from '../tensor/tensor.js'
import { CallsInFlight } from './calls.js'
import type { Origin } from './load.js'

/** The kinds of adapters that a model has. */
export type ModelAdapter = LoraAdapter | TokensAdapter

export interface ModelParts {
  device: Device
  dtype: 'float32' | 'bfloat16'
  architecture: Architecture
  network: CausalLM
  origins: ReadonlyMap<string, Origin>
  config: Readonly<Record<string, unknown>>
  generationConfig: Record<string, unknown>
  tokenizer: Tokenizer | null
  /** Folder or Hub id. */
  source: string | null
}

/** What a model and its views (`withAdapter`) share. */
export class ModelState {
  readonly device: Device
  readonly dtype: 'float32' | 'bfloat16'
  readonly architecture: Architecture
  readonly network: CausalLM
  readonly origins: ReadonlyMap<string, Origin>
  readonly config: Readonly<Record<string, unknown>>
  readonly source: string | null
  generationConfig: Record<string, unknown>
  readonly #tokenizer: Tokenizer | null
  readonly calls = new CallsInFlight()
  readonly adapters = new Map<string, ModelAdapter>()
  defaultAdapter: string | null = null
  /** Rows of added tokens for calls without an adapter. */
  newTokens: TokensAdapter | null = null
  /** The adapter that is merged into the base, and the weights it replaced. */
  merged: { adapter: ModelAdapter; replaced: Map<string, Tensor> } | null = null
  #disposed: Promise<void> | null = null
  #freed = false

  constructor(parts: ModelParts) {
    this.device = parts.device
    this.dtype = parts.dtype
    this.architecture = parts.architecture
    this.network = parts.network
    this.origins = parts.origins
    this.config = parts.config
    this.generationConfig = parts.generationConfig
    this.#tokenizer = parts.tokenizer
    this.source = parts.source
  }

  get hasTokenizer(): boolean {
    return this.#tokenizer !== null
  }

  get tokenizer(): Tokenizer {
    this.assertLive()
    if (this.#tokenizer !== null) return this.#tokenizer
    throw invalidArgument(
      `${this.source ?? 'this model'} has no tokenizer (tokenizer.json); only token ids can be used with it`,
    )
  }

  /** Calls in flight go on until the weights are freed, although `dispose` was called already. */
  assertLive(): void {
    if (this.#freed) throw disposed()
  }

  /** New calls are refused from `dispose` on. */
  assertOpen(): void {
    if (this.#disposed) throw disposed()
  }

  adapterNamed(name: string): ModelAdapter {
    const adapter = this.adapters.get(name)
    if (adapter) return adapter
    const known = this.adapters.size > 0 ? `there are ${[...this.adapters.keys()].join(', ')}` : 'there are none'
    throw invalidArgument(`there is no adapter "${name}"; ${known}`, { adapter: name })
  }

  /** The adapter of a call: by name, null for the bare base (with its added tokens, if any). */
  resolve(name: string | null): Adapter | null {
    this.assertLive()
    const adapter = name === null ? null : name === this.newTokens?.name ? this.newTokens : this.adapterNamed(name)
    if (this.merged && adapter !== this.merged.adapter) {
      const wanted = name === null ? 'the bare base' : `adapter "${name}"`
      const { name: merged } = this.merged.adapter
      throw invalidArgument(`adapter "${merged}" is merged into the base, so ${wanted} is not there; unmerge it first`)
    }
    return adapter ?? this.newTokens
  }

  dispose(): Promise<void> {
    this.#disposed ??= this.calls.whenIdle(() => this.#free()).then(() => this.device.settled().catch(() => {}))
    return this.#disposed
  }

  #free(): void {
    this.#freed = true
    for (const parameter of this.network.parameters.values()) parameter.dispose()
    for (const adapter of this.adapters.values()) adapter.dispose()
    for (const tensor of this.merged?.replaced.values() ?? []) tensor.dispose()
    this.newTokens?.dispose()
    formatTraces()
  }
}

const disposed = () => new QuantuneError('ERR_DISPOSED', 'this model was disposed of')
