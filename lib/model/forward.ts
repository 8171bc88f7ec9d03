import { backward, sum, Tape, withTape } from '../autograd/index.js'
import type { BatchData } from '../data/batch-data.js'
import { neededRows } from '../data/needed-rows.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import type { CausalLM } from '../models/index.js'
import { attendSegments } from '../nn/index.js'
import { assertKnownKeys } from '../options.js'
import type { Adapter } from '../peft/adapter.js'
import { type Device, inScope, scope, Tensor, withCallSite } from '../tensor/index.js'

export interface ForwardOptions {
  /** The adapter's name, null for the bare base. Default: the model's. */
  adapter?: string | null
  /** The rows that logits can be asked for. Default: 'labelled' if the batch has labels, else 'all'. */
  outputRows?: 'labelled' | 'all' | Int32Array
  /** Compute each layer again in the backward pass instead of keeping its activations. Default: false. */
  gradientCheckpointing?: boolean
  /** int32 [4]: seed (low, high), step, micro-batch. Draws the adapter's dropout; without it there is none. */
  dropoutRng?: Tensor | null
}

const optionNames = ['adapter', 'outputRows', 'gradientCheckpointing', 'dropoutRng']

/** The mean cross-entropy over the batch's targets, on its way. */
export class Loss {
  /** float32 [1] */
  readonly tensor: Tensor
  /** Number of targets that it is the mean of. */
  readonly count: number
  readonly #tape: Tape | null
  readonly #release: () => void

  constructor(tensor: Tensor, count: number, tape: Tape | null, release: () => void) {
    this.tensor = tensor
    this.count = count
    this.#tape = tape
    this.#release = release
  }

  /**
   * Queues the backward pass: adds `scale` times the gradients to those of the trainable parameters and frees all but the loss.
   * @throws ERR_INVALID_ARGUMENT when nothing is trainable, inside `noGrad`, or the second time
   */
  backward(scale = 1): void {
    withCallSite('Loss.backward', () => backward(this.tensor, scale))
    this.#release()
  }

  /** Waits for the value. */
  item(): Promise<number> {
    return this.tensor.item()
  }

  /** Frees it, and what was kept for a backward pass that did not come. */
  dispose(): void {
    this.#tape?.dispose()
    this.#release()
    this.tensor.dispose()
  }
}

/** What a forward pass gave. `dispose` it, or call it within a scope, unless `loss.backward()` or `loss.dispose()` does. */
export class ForwardResult {
  /** Absent when the batch has no labels. */
  readonly loss?: Loss
  readonly #network: CausalLM
  readonly #adapter: Adapter | null
  /** Stream rows of `hidden`, ascending. */
  readonly #rows: Int32Array
  readonly #requested: Int32Array
  /** Inside a scope the outputs are the scope's. */
  readonly #owned = !inScope()
  #hidden: Tensor | null

  constructor(parts: ForwardParts) {
    this.#network = parts.network
    this.#adapter = parts.adapter
    this.#rows = parts.rows
    this.#requested = parts.requested
    this.#hidden = parts.hidden
    if (parts.loss) this.loss = new Loss(parts.loss, parts.count, parts.tape, () => this.#release())
    else parts.tape?.dispose()
  }

  /**
   * @param rows stream rows, in any order; default: the call's `outputRows`
   * @returns float32 [rows, vocabulary]; the caller disposes of it
   * @throws ERR_INVALID_ARGUMENT for a row that the call was not asked for, ERR_DISPOSED after `backward` or `dispose`
   */
  logits(rows: Int32Array = this.#requested): Tensor {
    const hidden = this.#hidden
    if (hidden === null) throw new QuantuneError('ERR_DISPOSED', 'logits: the outputs of this forward pass were freed already')
    return scope(() => {
      const chosen = localRows(this.#rows, rows, 'logits')
      const isAll = chosen.length === this.#rows.length && chosen.every((row, i) => row === i)
      if (isAll) return this.#network.logits(hidden, this.#adapter)
      const selected = Tensor.empty(hidden.device, [chosen.length, hidden.shape[1]!], hidden.dtype)
      hidden.device.ops.gather_rows(selected, hidden, Tensor.from(hidden.device, chosen, [chosen.length], 'int32'))
      return this.#network.logits(selected, this.#adapter)
    })
  }

  dispose(): void {
    this.loss?.dispose()
    this.#release()
  }

  #release(): void {
    if (this.#owned) this.#hidden?.dispose()
    this.#hidden = null
  }
}

interface ForwardParts {
  network: CausalLM
  adapter: Adapter | null
  rows: Int32Array
  requested: Int32Array
  hidden: Tensor
  loss: Tensor | null
  count: number
  tape: Tape | null
}

/** Queues a forward pass, and the losses of the batch's targets; records a tape when something that takes part is trainable. */
export function forward(
  device: Device,
  network: CausalLM,
  adapter: Adapter | null,
  batch: BatchData,
  options: ForwardOptions,
): ForwardResult {
  assertKnownKeys(options, optionNames, 'ForwardOptions')
  checkBatch(batch, network, adapter)
  const requested = requestedRows(batch, options.outputRows)
  const rows = union(requested, batch.targetRows)
  if (rows.length === 0)
    throw invalidArgument('forward: no output was asked for: the batch has no labels and outputRows is empty')
  const count = batch.targetRows.length
  const recorded = count > 0 && !Tape.disabled && isTrainable(network, adapter)
  const tape = recorded ? (Tape.current ?? new Tape()) : null
  try {
    const { hidden, loss } = withCallSite('Model.forward', () =>
      scope(() => withTape(tape, () => compute(device, network, adapter, batch, rows, options))),
    )
    return new ForwardResult({ network, adapter, rows, requested, hidden, loss, count, tape })
  } catch (error) {
    tape?.dispose()
    throw error
  }
}

function compute(
  device: Device,
  network: CausalLM,
  adapter: Adapter | null,
  batch: BatchData,
  rows: Int32Array,
  { gradientCheckpointing = false, dropoutRng = null }: ForwardOptions,
): { hidden: Tensor; loss: Tensor | null } {
  const upload = (values: Int32Array) => Tensor.from(device, values, [values.length], 'int32')
  const { stream, rows: asked } = neededRows(batch, rows)
  const outputRows = asked.length === stream.inputIds.length ? null : upload(asked)
  const attend = attendSegments(upload(stream.end), outputRows)
  const inputIds = upload(stream.inputIds)
  const positions = upload(stream.positions)
  const hidden = network.hidden({ inputIds, positions, attend, outputRows, adapter, dropoutRng, gradientCheckpointing })
  const count = batch.targetRows.length
  if (count === 0) return { hidden, loss: null }
  const targetRows = upload(localRows(rows, batch.targetRows, 'forward'))
  return { hidden, loss: sum(network.losses(hidden, targetRows, upload(batch.targetIds), adapter), 1 / count) }
}

function isTrainable(network: CausalLM, adapter: Adapter | null): boolean {
  for (const { requiresGrad } of adapter?.parameters().values() ?? []) if (requiresGrad) return true
  for (const { requiresGrad } of network.parameters.values()) if (requiresGrad) return true
  return false
}

const batchArrays = ['inputIds', 'positions', 'end', 'targetRows', 'targetIds'] as const

/** Whether a value has a batch's parts; what is in them is for the model to check. */
export function isBatch(value: unknown): value is BatchData {
  const batch = (value ?? {}) as Partial<BatchData>
  return batchArrays.every((name) => batch[name] instanceof Int32Array)
}

function checkBatch(batch: BatchData, { shape }: CausalLM, adapter: Adapter | null): void {
  if (!isBatch(batch)) throw invalidArgument('forward: expected a batch, as Batch.pack and Batch.fromPadded make it')
  const { inputIds, positions, end, targetRows, targetIds } = batch
  const tokens = inputIds.length
  if (tokens === 0) throw invalidArgument('forward: the batch is empty')
  if (positions.length !== tokens || end.length !== tokens) {
    throw invalidArgument(
      `forward: ${tokens} inputIds need as many positions and ends; got ${positions.length} and ${end.length}`,
    )
  }
  if (targetRows.length !== targetIds.length) {
    throw invalidArgument(`forward: ${targetRows.length} targetRows need as many targetIds; got ${targetIds.length}`)
  }
  const predictable = adapter?.tokenRows?.head?.tokenIds ?? []
  const outside = targetIds.find((id) => id < 0 || (id >= shape.vocabSize && !predictable.includes(id)))
  if (outside !== undefined) {
    const why = adapter?.tokenRows?.tokenIds.includes(outside) ? '; it was added with predictable: false, give it no label' : ''
    throw invalidArgument(`forward: the model does not predict token ${outside}, which is a target${why}`, { tokenId: outside })
  }
  const last = positions.reduce((largest, position) => Math.max(largest, position), 0)
  if (last < shape.maxPositionEmbeddings) return
  throw new QuantuneError(
    'ERR_CONTEXT_LENGTH',
    `forward: a sequence of ${last + 1} tokens is longer than the model's context of ${shape.maxPositionEmbeddings}; ` +
      'maxLength of ChatCollator cuts longer examples',
    { details: { length: last + 1, limit: shape.maxPositionEmbeddings } },
  )
}

function requestedRows({ inputIds, targetRows }: BatchData, outputRows: ForwardOptions['outputRows']): Int32Array {
  const choice = outputRows ?? (targetRows.length > 0 ? 'labelled' : 'all')
  if (choice === 'all') return Int32Array.from(inputIds, (_, row) => row)
  if (choice === 'labelled') return union(targetRows)
  if (!(choice instanceof Int32Array)) throw invalidArgument("forward: outputRows must be 'labelled', 'all' or an Int32Array")
  const outside = choice.find((row) => row < 0 || row >= inputIds.length)
  if (outside !== undefined)
    throw invalidArgument(`forward: output row ${outside} is not in the batch of ${inputIds.length} tokens`)
  return choice
}

/** Ascending, each once. */
function union(...lists: Int32Array[]): Int32Array {
  return Int32Array.from(new Set(lists.flatMap((list) => [...list]))).sort()
}

/** Where `wanted` stream rows lie among the computed ones. */
function localRows(computed: Int32Array, wanted: Int32Array, what: string): Int32Array {
  const places = new Map<number, number>()
  for (const [place, row] of computed.entries()) places.set(row, place)
  return wanted.map((row) => {
    const place = places.get(row)
    if (place === undefined) throw invalidArgument(`${what}: row ${row} was not computed; ask for it with outputRows`, { row })
    return place
  })
}
