import type { Parameter } from '../autograd/parameter.js'
import type { BatchData } from '../data/batch-data.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import type { Device } from '../tensor/device.js'
import { isQuantized } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import type { ResolvedArguments } from './arguments.js'
import { AdamW } from './optimizer.js'

/** The mean loss over a batch's targets, on its way. */
export interface BatchLoss {
  /** float32 [1] */
  readonly tensor: Tensor
  backward(scale?: number): void
  dispose(): void
}

/** What training asks of a model; the library's own `Model` is one. */
export interface TrainableModel {
  readonly device: Device
  readonly network: CausalLM
  readonly dtype: 'float32' | 'bfloat16'
  /** Names of the adapters that can be saved by name. */
  readonly adapters: readonly string[]
  resolveAdapter(name: string | null | undefined): Adapter | null
  forward(
    batch: BatchData,
    options: { adapter: string | null; gradientCheckpointing?: boolean; dropoutRng?: Tensor | null },
  ): { loss?: BatchLoss | null; dispose?(): void }
  parameters(): Map<string, Parameter>
  trainableParameters(adapter?: string | null): Parameter[]
  saveAdapter(folder: string, name: string): Promise<void>
  savePretrained(folder: string, options: { base: 'dequantized'; dtype: 'float32' }): Promise<unknown>
  beginCall(kind: string, exclusive?: string): () => void
}

/** What is trained: an adapter, or the base itself. */
export interface Trainee {
  readonly model: TrainableModel
  /** null: the base. */
  readonly adapter: Adapter | null
  readonly parameters: readonly Parameter[]
}

/** Resolves what to train; a base of which nothing is trainable yet is made so as a whole (full fine-tuning). */
export function traineeOf(model: TrainableModel, adapterName: string | null | undefined): Trainee {
  const adapter = model.resolveAdapter(adapterName)
  const name = adapter?.name ?? null
  if (!adapter && model.trainableParameters(null).length === 0) {
    const base = [...model.network.parameters.values()]
    const frozen = base.find(({ dtype }) => isQuantized(dtype))
    if (frozen)
      throw invalidArgument(`${frozen.dtype} weights cannot be trained and no adapter is active: call addAdapter first`)
    for (const parameter of base) parameter.requiresGrad = true
  }
  if (adapter && 'merged' in adapter && adapter.merged === true) {
    throw invalidArgument(`adapter "${name}" is merged into the base; unmerge it to train it`)
  }
  const parameters = model.trainableParameters(name)
  if (parameters.length === 0) {
    throw invalidArgument(`adapter "${name}" has nothing trainable; load it with { trainable: true } to go on training it`)
  }
  return { model, adapter, parameters }
}

/** The largest probability with which a layer of the adapter drops its inputs. */
export function dropoutOf({ model, adapter }: Trainee): number {
  const layers = [...model.network.linearLayers.keys()].map((module) => adapter?.lora(module)?.dropout ?? 0)
  return Math.max(0, ...layers)
}

/** Writes the files that users load: the adapter's, or the whole model's where parts of the base were trained. */
export async function saveTrainee({ model, adapter }: Trainee, folder: string): Promise<void> {
  if (adapter && model.adapters.includes(adapter.name)) return model.saveAdapter(folder, adapter.name)
  if (adapter && model.trainableParameters(adapter.name).every(({ name }) => adapter.parameters().has(name))) return
  await model.savePretrained(folder, { base: 'dequantized', dtype: 'float32' })
}

/** As in transformers, neither biases nor norms decay. */
const undecayed = /bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)|(?:^|\.)ln_(?:\d|f)(?:$|\.)/i

export function optimizerOf({ parameters }: Trainee, args: ResolvedArguments): AdamW {
  const groups = [
    { parameters: parameters.filter(({ name }) => !undecayed.test(name)) },
    { parameters: parameters.filter(({ name }) => undecayed.test(name)), weightDecay: 0 },
  ]
  return new AdamW(groups, {
    learningRate: args.learningRate,
    betas: [args.adamBeta1, args.adamBeta2],
    eps: args.adamEpsilon,
    weightDecay: args.weightDecay,
    maxGradNorm: args.maxGradNorm,
  })
}
