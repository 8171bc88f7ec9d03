import { Batch } from '../../lib/data/batch.js'
import type { Model } from '../../lib/model/model.js'
import { type ReferenceTensors, rowsOf } from '../support/reference-tensors.js'

/** The padded batch of a reference file; without labels where only logits are wanted. */
export function batchOf(reference: ReferenceTensors, options: { labels: boolean }): Batch {
  const rows = (name: string) => {
    const tensor = reference.get(name)
    return tensor && rowsOf(tensor)
  }
  const labels = options.labels ? rows('labels') : undefined
  return Batch.fromPadded({ inputIds: rows('input_ids')!, attentionMask: rows('attention_mask'), labels })
}

/** The model's logits at every token of the reference, and the reference's own, without the padded positions. */
export async function compareLogits(
  model: Model,
  reference: ReferenceTensors,
  adapter: string | null | undefined,
): Promise<{ actual: Float32Array; expected: Float32Array }> {
  const batch = batchOf(reference, { labels: false })
  const output = model.forward(batch, { adapter, outputRows: 'all' })
  const logits = output.logits()
  const { shape, values } = reference.get('logits')!
  const [, length, vocabulary] = shape as [number, number, number]
  const ours = (await logits.data()) as Float32Array
  const width = logits.shape[1]!
  logits.dispose()
  const actual: number[] = []
  const expected: number[] = []
  for (const [sample, rows] of batch.sampleRows.entries()) {
    for (const [t, row] of rows.entries()) {
      const start = (sample * length + t) * vocabulary
      actual.push(...ours.subarray(row * width, row * width + vocabulary))
      expected.push(...(values as Float32Array).subarray(start, start + vocabulary))
    }
  }
  return { actual: Float32Array.from(actual), expected: Float32Array.from(expected) }
}
