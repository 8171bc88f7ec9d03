import { Parameter } from '../autograd/index.js'
import { corruptFile } from '../formats/errors.js'
import type { SafetensorsDtype } from '../formats/safetensors.js'
import type { StoredTensor, WeightFiles } from '../formats/weight-files.js'
import type { Architecture, CausalLM } from '../models/index.js'
import { initialize } from '../nn/index.js'
import {
  describeFourBit,
  describeInt8,
  isFourBit,
  isInt8,
  type StoredFourBitWeight,
  type StoredInt8Weight,
} from '../quantization/bitsandbytes.js'
import { defaultThreshold, type ResolvedFourBit, type ResolvedInt8, type ResolvedQuantization } from '../quantization/config.js'
import { type Device, type DType, type MappedFile, type Purpose, Tensor } from '../tensor/index.js'
import type { Progress } from './options.js'
import { locateParameters, type PlannedParameter, planParameters } from './plan.js'

/** Where a parameter came from: what `savePretrained` writes in the file's own type, or streams from the file again. */
export interface Origin {
  readonly dtype: 'F32' | 'F16' | 'BF16'
  /** null for weights that no 16- or 32-bit file holds (quantized folders, new models) */
  readonly stored: StoredTensor | null
}

export interface LoadedNetwork {
  network: CausalLM
  origins: ReadonlyMap<string, Origin>
}

export interface LoadOptions {
  architecture: Architecture
  config: Readonly<Record<string, unknown>>
  device: Device
  dtype: 'float32' | 'bfloat16'
  /** What becomes of the weights. */
  quantization: ResolvedQuantization | null
  /** What they are in the files already. */
  stored?: ResolvedQuantization | null
  signal?: AbortSignal | undefined
  onProgress?: ((progress: Progress) => void) | undefined
}

export const dtypeOfFile: Partial<Record<SafetensorsDtype, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  I8: 'int8',
  U8: 'uint8',
}

/** What may be queued before the loader waits: keeps progress honest and an abort quick. */
const bytesInFlight = 64 << 20

/**
 * Builds a network from a folder's weights. Each weight is copied out of the mapped file, quantized and freed in turn, so the peak
 * stays near the final size.
 */
export async function loadNetwork(files: WeightFiles, options: LoadOptions): Promise<LoadedNetwork> {
  const { architecture, config, device, dtype, quantization } = options
  const { parameters } = planParameters(architecture, config, quantization)
  const located = locateParameters(files, parameters, architecture)
  const loader = new Loader(files, options)
  const values = new Map<string, Tensor>()
  const origins = new Map<string, Origin>()
  try {
    for (const parameter of parameters) {
      const stored = located.get(parameter.name)!
      const { value, origin } = await loader.load(parameter, stored)
      values.set(parameter.name, value)
      origins.set(parameter.name, origin)
      await loader.loaded(stored)
    }
    await loader.finish()
    const take = (name: string) => new Parameter(name, values.get(name)!)
    return { network: architecture.create(architecture.parseConfig(config), take, { dtype }), origins }
  } catch (error) {
    for (const value of values.values()) value.dispose()
    throw error
  } finally {
    await device.settled().catch(() => {})
    loader.close()
  }
}

class Loader {
  readonly #files: WeightFiles
  readonly #options: LoadOptions
  readonly #mapped = new Map<string, MappedFile>()
  #loadedBytes = 0
  #waitedBytes = 0

  constructor(files: WeightFiles, options: LoadOptions) {
    this.#files = files
    this.#options = options
  }

  async load(parameter: PlannedParameter, stored: StoredTensor): Promise<{ value: Tensor; origin: Origin }> {
    this.#options.signal?.throwIfAborted()
    return this.#weight(parameter, stored)
  }

  /** Counts a weight that was queued, and reports it. */
  async loaded(stored: StoredTensor): Promise<void> {
    this.#loadedBytes += stored.byteLength
    if (this.#loadedBytes - this.#waitedBytes > bytesInFlight) {
      await this.#options.device.settled()
      this.#waitedBytes = this.#loadedBytes
    }
    this.#report(stored)
  }

  async finish(): Promise<void> {
    await this.#options.device.settled()
  }

  close(): void {
    for (const file of this.#mapped.values()) file.close()
  }

  #report({ path }: StoredTensor): void {
    const { onProgress, quantization } = this.#options
    const totalBytes = this.#files.totalBytes
    onProgress?.({ stage: quantization ? 'quantize' : 'load', file: path, loadedBytes: this.#loadedBytes, totalBytes })
  }

  async #weight(parameter: PlannedParameter, stored: StoredTensor): Promise<{ value: Tensor; origin: Origin }> {
    const files = this.#files
    const quantized: Origin = { dtype: originDtype(this.#options.config), stored: null }
    if (isFourBit(files, stored.name))
      return { value: this.#fourBit(parameter, await describeFourBit(files, stored.name)), origin: quantized }
    if (isInt8(files, stored.name)) {
      const [rows, columns] = parameter.shape as [number, number]
      const size = parameter.transposed ? ([columns, rows] as const) : ([rows, columns] as const)
      return { value: this.#int8(parameter, await describeInt8(files, stored.name, size)), origin: quantized }
    }
    return { value: this.#dense(parameter, stored), origin: { dtype: stored.dtype as Origin['dtype'], stored } }
  }

  #dense(parameter: PlannedParameter, stored: StoredTensor): Tensor {
    const { device, quantization } = this.#options
    const quantize = parameter.quantize && quantization
    const value = this.#read(stored, dtypeOfFile[stored.dtype]!, stored.shape, quantize ? 'other' : 'weights')
    if (quantize) return consume(value, quantized(device, parameter, quantize), (q, w) => device.ops.quantize(q, w))
    // Norms and biases are small, and kernels read them as float32.
    if (stored.shape.length > 1 || value.dtype === 'float32') return value
    return consume(value, Tensor.empty(device, stored.shape, 'float32', 'weights'), (to, from) => device.ops.copy(to, from))
  }

  #fourBit(parameter: PlannedParameter, weight: StoredFourBitWeight): Tensor {
    const { device } = this.#options
    const { name, shape } = parameter
    if (weight.shape.join() !== shape.join()) {
      const problem = `was quantized as [${weight.shape.join(', ')}], config.json asks for [${shape.join(', ')}]`
      throw corruptFile(weight.codes.path, problem, { tensor: name })
    }
    const { nested } = weight
    const value = quantized(device, parameter, { ...weight, doubleQuant: nested !== null })
    const flat = (stored: StoredTensor) =>
      this.#read(stored, dtypeOfFile[stored.dtype]!, [stored.byteLength / (stored.dtype === 'F32' ? 4 : 1)], 'other')
    const codes = this.#read(weight.codes, 'uint8', [weight.codes.byteLength], 'other')
    const parts = [codes, flat(weight.absmax), nested && flat(nested.absmax), nested && flat(nested.code)] as const
    device.ops.quantized_load(value, ...parts, nested?.offset ?? 0)
    for (const part of parts) part?.dispose()
    return value
  }

  #int8(parameter: PlannedParameter, weight: StoredInt8Weight): Tensor {
    const { device, stored } = this.#options
    const threshold = stored?.type === 'int8' ? stored.threshold : defaultThreshold
    const value = quantized(device, parameter, { type: 'int8', threshold })
    const codes = this.#read(weight.codes, 'int8', weight.codes.shape, 'other')
    const absmax = this.#read(weight.absmax, 'float32', [weight.absmax.byteLength / 4], 'other')
    device.ops.quantized_load(value, codes, absmax, null, null, 0)
    codes.dispose()
    absmax.dispose()
    return value
  }

  #read(stored: StoredTensor, dtype: DType, shape: readonly number[], purpose: Purpose): Tensor {
    let file = this.#mapped.get(stored.path)
    if (file === undefined) {
      file = this.#options.device.openFile(stored.path)
      this.#mapped.set(stored.path, file)
    }
    return Tensor.fromFile(this.#options.device, file, stored.byteOffset, shape, dtype, purpose)
  }
}

type HowQuantized = Omit<ResolvedFourBit, 'skipModules'> | Omit<ResolvedInt8, 'skipModules'>

function quantized(device: Device, { shape, transposed }: PlannedParameter, how: HowQuantized): Tensor {
  if (how.type === 'int8')
    return Tensor.emptyQuantized(device, shape, { type: 'llm_int8', threshold: how.threshold, transposed }, 'weights')
  const { type, blockSize, doubleQuant } = how
  return Tensor.emptyQuantized(device, shape, { type, blockSize, doubleQuant }, 'weights')
}

/** Fills `target` from `source`, which is freed as soon as that has run. */
function consume(source: Tensor, target: Tensor, fill: (target: Tensor, source: Tensor) => void): Tensor {
  fill(target, source)
  source.dispose()
  return target
}

/** `dtype` (older: `torch_dtype`) of config.json as safetensors call it; float32 when it says nothing. */
export function originDtype(config: Readonly<Record<string, unknown>>): Origin['dtype'] {
  const name = String(config.dtype ?? config.torch_dtype ?? 'float32')
  return name === 'bfloat16' ? 'BF16' : name === 'float16' ? 'F16' : 'F32'
}

/** A network with newly drawn weights; they depend on the seed and the parameters' names alone. */
export function initializeNetwork(options: LoadOptions & { seed: number; trainable: boolean }): LoadedNetwork {
  const { architecture, config, device, dtype, quantization, seed } = options
  const { parameters } = planParameters(architecture, config, quantization)
  const origin: Origin = { dtype: originDtype(config), stored: null }
  const storage = options.trainable ? 'float32' : dtypeOfFile[origin.dtype]!
  const byName = new Map(parameters.map((parameter) => [parameter.name, parameter]))
  const create = (name: string) => {
    const parameter = byName.get(name)!
    const { shape, init, quantize } = parameter
    const quantizes = quantize && quantization
    const stays = !quantizes && (shape.length === 1 || storage === 'float32')
    const drawn = Tensor.empty(device, shape, 'float32', stays ? 'weights' : 'other')
    initialize(drawn, name, init, seed)
    if (stays) return new Parameter(name, drawn)
    if (quantizes) {
      return new Parameter(
        name,
        consume(drawn, quantized(device, parameter, quantization), (q, w) => device.ops.quantize(q, w)),
      )
    }
    const stored = Tensor.empty(device, shape, storage, 'weights')
    return new Parameter(
      name,
      consume(drawn, stored, (to, from) => device.ops.copy(to, from)),
    )
  }
  const network = architecture.create(architecture.parseConfig(config), create, { dtype })
  return { network, origins: new Map(parameters.map(({ name }) => [name, origin])) }
}
