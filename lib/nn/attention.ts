import { type AttentionMask, attention, Tape } from '../autograd/index.js'
import { invalidArgument } from '../errors.js'
import type { Attend } from '../models/causal-lm.js'
import { Tensor } from '../tensor/tensor.js'

/** Builds the backend's plan for one set of queries over a stream. `rows` int32 [Tq] ascending (null: all), `end` int32 [T]. */
export function attentionMask(rows: Tensor | null, end: Tensor): AttentionMask {
  const { device } = end
  const keys = end.shape[0]!
  const queries = rows ? rows.shape[0]! : keys
  const plan = Tensor.empty(device, [device.attentionPlanSize(queries, keys)], 'int32', 'activations')
  device.ops.attention_plan(plan, rows, end, queries)
  return { rows, end, plan }
}

/**
 * Attention within one stream of segments, for training and prefill: every layer uses the same plan, and the last one a second for
 * the rows that are asked for. Key j is visible to query i iff j <= i < end[j].
 *
 * @param end int32 [T]
 * @param outputRows the rows that the last layer will ask for, as in the model's input
 */
export function attendSegments(end: Tensor, outputRows: Tensor | null = null): Attend {
  const all = attentionMask(null, end)
  const pruned = outputRows && attentionMask(outputRows, end)
  Tape.current?.hold(end, all.plan, pruned?.rows ?? null, pruned?.plan ?? null)
  return (_layer, q, k, v, rows) => {
    if (rows && rows !== outputRows) throw invalidArgument('attention: a plan was built for other rows than those asked for')
    const mask = rows ? pruned! : all
    return attention(q, k, v, mask, 1 / Math.sqrt(q.shape[2]!))
  }
}
