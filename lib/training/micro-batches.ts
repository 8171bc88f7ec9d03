import type { BatchData } from '../data/batch-data.js'
import type { Collator } from '../data/chat-collator.js'
import { invalidArgument } from '../errors.js'

export interface MicroBatchOptions {
  /** Examples of a micro-batch; does not count where `maxTokens` is given. */
  batchSize: number
  /** Tokens of a micro-batch at most, a shared prefix counted once; a longer example stands alone. */
  maxTokens?: number
}

/** Cuts examples into micro-batches, in order. */
export async function microBatches<T>(
  collator: Collator<T>,
  examples: readonly T[],
  { batchSize, maxTokens }: MicroBatchOptions,
): Promise<BatchData[]> {
  if (maxTokens === undefined) return collateAll(collator, chunks(examples, batchSize))
  const whole = await collator.collate(examples)
  if (whole.inputIds.length <= maxTokens || examples.length === 1) return [whole]
  if (whole.sampleRows.length !== examples.length) {
    const got = whole.sampleRows.length
    throw invalidArgument(
      `maxTokensPerBatch: the collator made ${got} samples of ${examples.length} examples, so they can't be cut`,
    )
  }
  return collateAll(collator, cutByTokens(examples, whole, maxTokens))
}

/** Labelled tokens of several batches. */
export const countTargets = (batches: readonly BatchData[]) => batches.reduce((sum, { targetIds }) => sum + targetIds.length, 0)

async function collateAll<T>(collator: Collator<T>, groups: T[][]): Promise<BatchData[]> {
  const batches: BatchData[] = []
  for (const group of groups) batches.push(await collator.collate(group))
  return batches
}

function chunks<T>(examples: readonly T[], size: number): T[][] {
  const count = Math.ceil(examples.length / size)
  return Array.from({ length: count }, (_, i) => examples.slice(i * size, (i + 1) * size))
}

/** A run of examples takes as many tokens as its rows of the whole tree: so nothing need be collated to find where to cut. */
function cutByTokens<T>(examples: readonly T[], whole: BatchData, maxTokens: number): T[][] {
  const groups: T[][] = []
  let rows = new Set<number>()
  let group: T[] = []
  for (const [i, example] of examples.entries()) {
    const own = whole.sampleRows[i]!
    const added = own.reduce((sum, row) => sum + (rows.has(row) ? 0 : 1), 0)
    if (group.length > 0 && rows.size + added > maxTokens) {
      groups.push(group)
      group = []
      rows = new Set()
    }
    group.push(example)
    for (const row of own) rows.add(row)
  }
  groups.push(group)
  return groups
}
