import { noGrad } from '../autograd/tape.js'
import type { BatchData } from '../data/batch-data.js'
import type { Collator } from '../data/chat-collator.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { fetchAll, type IndexedDataset, iterate, type TrainingDataset } from './feed.js'
import { HoldBack } from './hold-back.js'
import { countTargets, microBatches } from './micro-batches.js'
import type { TrainableModel } from './model.js'
import type { Metrics } from './types.js'

export interface EvaluationOptions<T> {
  model: TrainableModel
  adapter: string | null
  dataset: TrainingDataset<T>
  collator: Collator<T>
  batchSize: number
  maxTokens?: number
  signal?: AbortSignal
}

/**
 * The mean loss over all labelled tokens of a data set, and how fast it was computed.
 *
 * @returns `eval_loss`, `eval_runtime` in seconds, `eval_samples_per_second`
 * @throws QuantuneError `ERR_ALL_LABELS_MASKED` where no token of the whole set is labelled; `signal.reason` when aborted
 */
export async function evaluateLoss<T>(options: EvaluationOptions<T>): Promise<Metrics> {
  const { model, dataset, collator, batchSize, maxTokens, signal } = options
  const started = performance.now()
  const total = keep(Tensor.zeros(model.device, [1], 'float32', 'other'))
  const holdBack = new HoldBack(model.device)
  let targets = 0
  let samples = 0
  try {
    for await (const examples of slices(dataset, batchSize)) {
      const batches = await microBatches(collator, examples, { batchSize, maxTokens })
      for (const batch of batches) {
        signal?.throwIfAborted()
        addLoss(options, batch, total)
        await holdBack.queued()
      }
      targets += countTargets(batches)
      samples += examples.length
    }
    if (targets === 0) {
      throw new QuantuneError('ERR_ALL_LABELS_MASKED', `evalDataset: none of its ${samples} samples has a labelled token`)
    }
    const loss = (await total.item()) / targets
    const seconds = (performance.now() - started) / 1000
    return { eval_loss: loss, eval_runtime: seconds, eval_samples_per_second: samples / seconds }
  } finally {
    total.dispose()
  }
}

function addLoss<T>({ model, adapter }: EvaluationOptions<T>, batch: BatchData, total: Tensor): void {
  if (batch.targetIds.length === 0) return
  noGrad(() =>
    scope(() => {
      const { loss } = model.forward(batch, { adapter })
      model.device.ops.sum(total, loss!.tensor, batch.targetIds.length, 1)
      loss!.dispose()
    }),
  )
}

/** What a user's metrics are reported as. @throws QuantuneError `ERR_INVALID_ARGUMENT` for one that is no number */
export function withPrefix(metrics: unknown): Metrics {
  if (typeof metrics !== 'object' || metrics === null) {
    throw invalidArgument(
      `computeMetrics: expected an object of numbers, received ${metrics === null ? 'null' : typeof metrics}`,
    )
  }
  const named = Object.entries(metrics).map(([name, value]): [string, number] => {
    if (typeof value !== 'number')
      throw invalidArgument(`computeMetrics: expected ${name} to be a number, received ${typeof value}`)
    return [name.startsWith('eval_') ? name : `eval_${name}`, value]
  })
  return Object.fromEntries(named)
}

async function* slices<T>(dataset: TrainingDataset<T>, size: number): AsyncGenerator<T[]> {
  if (typeof dataset !== 'function') {
    const { length } = dataset
    for (let start = 0; start < length; start += size) {
      const indices = Array.from({ length: Math.min(size, length - start) }, (_, i) => start + i)
      yield fetchAll(dataset as IndexedDataset<T>, indices)
    }
    return
  }
  let slice: T[] = []
  for await (const example of { [Symbol.asyncIterator]: () => iterate(dataset, 'evalDataset') }) {
    slice.push(example)
    if (slice.length === size) {
      yield slice
      slice = []
    }
  }
  if (slice.length) yield slice
}
