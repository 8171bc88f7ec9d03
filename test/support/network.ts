import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { backward, Parameter, sum, Tape, withTape } from '../../lib/autograd/index.js'
import type { BatchData } from '../../lib/data/batch-data.js'
import { architectureOf, type CausalLM } from '../../lib/models/index.js'
import { attendSegments, initialize } from '../../lib/nn/index.js'
import type { Adapter } from '../../lib/peft/adapter.js'
import { Device } from '../../lib/tensor/device.js'
import { keep, scope } from '../../lib/tensor/scope.js'
import { Tensor } from '../../lib/tensor/tensor.js'
import { readReference } from './reference-tensors.js'

export const GOLDENS = fileURLToPath(new URL('../fixtures/goldens', import.meta.url))

type Config = Record<string, unknown>
interface NetworkOptions {
  seed?: number
  dtype?: 'float32' | 'bfloat16'
  trainable?: boolean
  /** replaces drawn values, by name */
  values?: ReadonlyMap<string, { values: ArrayLike<number> }>
}

/** A network of plain float32 parameters, without files or a Model around it. */
export function createNetwork(device: Device, config: Config, options: NetworkOptions = {}): CausalLM {
  const { seed = 1, dtype = 'float32', trainable = false, values } = options
  const architecture = architectureOf(config)
  const params = (name: string, shape: readonly number[], init: Parameters<typeof initialize>[2]) => {
    const tensor = keep(Tensor.empty(device, [...shape], 'float32', 'weights'))
    const given = values?.get(name)
    if (given) tensor.write(given.values as Float32Array)
    else initialize(tensor, name, init, seed)
    return new Parameter(name, tensor, { requiresGrad: trainable })
  }
  return architecture.create(architecture.parseConfig(config), params, { dtype })
}

/** A network with the weights of one of the reference models. */
export async function referenceNetwork(name: string, options: NetworkOptions = {}): Promise<CausalLM> {
  const device = await Device.open('cpu')
  const folder = join(GOLDENS, 'models', name)
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Config
  return createNetwork(device, config, { ...options, values: await readReference(join(folder, 'model.safetensors')) })
}

export function disposeNetwork(network: CausalLM): void {
  for (const parameter of network.parameters.values()) parameter.dispose()
}

interface PassOptions {
  adapter?: Adapter | null
  dropoutRng?: Tensor | null
  gradientCheckpointing?: boolean
  /** narrow the last layer to the rows with targets (default), as training does */
  prune?: boolean
}

/** Forward and loss on the tape, the mean over the batch's targets; with `tape` null nothing is recorded. */
export function meanLoss(network: CausalLM, batch: BatchData, tape: Tape | null, options: PassOptions = {}): Tensor {
  const { adapter = null, prune = true, ...rest } = options
  const device = deviceOf(network)
  return withTape(tape, () =>
    scope(() => {
      const labelled = [...new Set(batch.targetRows)]
      const outputRows = prune ? Tensor.from(device, Int32Array.from(labelled)) : null
      const rows = prune ? batch.targetRows.map((row) => labelled.indexOf(row)) : batch.targetRows
      const hidden = network.hidden({
        inputIds: Tensor.from(device, batch.inputIds),
        positions: Tensor.from(device, batch.positions),
        attend: attendSegments(Tensor.from(device, batch.end), outputRows),
        outputRows,
        adapter,
        ...rest,
      })
      const targets = [Tensor.from(device, rows), Tensor.from(device, batch.targetIds)] as const
      return sum(network.losses(hidden, ...targets, adapter), 1 / batch.targetIds.length)
    }),
  )
}

/** Logits of all rows, float32 [T, vocabulary]. */
export async function allLogits(network: CausalLM, batch: BatchData, adapter: Adapter | null = null): Promise<Float32Array> {
  const device = deviceOf(network)
  const logits = scope(() => {
    const hidden = network.hidden({
      inputIds: Tensor.from(device, batch.inputIds),
      positions: Tensor.from(device, batch.positions),
      attend: attendSegments(Tensor.from(device, batch.end)),
      outputRows: null,
      adapter,
    })
    return network.logits(hidden, adapter)
  })
  const data = (await logits.data()) as Float32Array
  logits.dispose()
  return data
}

/** One forward and backward pass; returns the loss and leaves the gradients in the parameters. */
export async function trainingPass(network: CausalLM, batch: BatchData, options: PassOptions = {}): Promise<number> {
  const loss = meanLoss(network, batch, new Tape(), options)
  backward(loss)
  const value = await loss.item()
  loss.dispose()
  return value
}

export async function lossOf(network: CausalLM, batch: BatchData, options: PassOptions = {}): Promise<number> {
  const loss = meanLoss(network, batch, null, options)
  const value = await loss.item()
  loss.dispose()
  return value
}

export function deviceOf(network: CausalLM): Device {
  return [...network.parameters.values()][0]!.value.device
}
