import type { BatchData } from '../data/batch-data.js'
import type { Collator } from '../data/chat-collator.js'
import { splitPrefixTree } from '../data/prefix-tree-split.js'
import { invalidArgument } from '../errors.js'
import { isBatch } from '../model/forward.js'

export interface MicroBatchOptions {
  /** Examples of a micro-batch; does not count where `maxTokens` is given. */
  batchSize: number
  /** Tokens of a micro-batch at most, a shared prefix counted once; a longer example stands alone. */
  maxTokens?: number
  /** See {@link CollateContext}. */
  dropout?: number
}

/** Cuts examples into micro-batches: in order, or with `maxTokens` so that what is shared is rarely computed twice. */
export async function microBatches<T>(
  collator: Collator<T>,
  examples: readonly T[],
  { batchSize, maxTokens, dropout = 0 }: MicroBatchOptions,
): Promise<BatchData[]> {
  if (maxTokens === undefined) return collateAll(collator, chunks(examples, batchSize), dropout)
  const whole = await collate(collator, examples, dropout)
  if (whole.inputIds.length <= maxTokens || examples.length === 1) return [whole]
  if (whole.sampleRows.length !== examples.length) {
    const got = whole.sampleRows.length
    throw invalidArgument(
      `maxTokensPerBatch: the collator made ${got} samples of ${examples.length} examples, so they can't be cut`,
    )
  }
  const parts = splitPrefixTree(whole.sampleRows, maxTokens)
  return collateAll(
    collator,
    parts.map((samples) => samples.map((sample) => examples[sample]!)),
    dropout,
  )
}

/** Labelled tokens of several batches. */
export const countTargets = (batches: readonly BatchData[]) => batches.reduce((sum, { targetIds }) => sum + targetIds.length, 0)

async function collate<T>(collator: Collator<T>, examples: readonly T[], dropout: number): Promise<BatchData> {
  const batch: unknown = await collator.collate(examples, { dropout })
  if (isBatch(batch)) return batch
  throw invalidArgument('collator: expected collate to return a batch, as Batch.pack and Batch.fromPadded make it')
}

async function collateAll<T>(collator: Collator<T>, groups: T[][], dropout: number): Promise<BatchData[]> {
  const batches: BatchData[] = []
  for (const group of groups) batches.push(await collate(collator, group, dropout))
  return batches
}

function chunks<T>(examples: readonly T[], size: number): T[][] {
  const count = Math.ceil(examples.length / size)
  return Array.from({ length: count }, (_, i) => examples.slice(i * size, (i + 1) * size))
}
