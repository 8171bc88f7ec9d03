/** How much arithmetic a training step needs: prefix trees have more of it a token, for their tokens see more and more are labelled. */
import type { BatchData } from '../../lib/data/batch-data.js'
import type { SHAPES, ShapeName } from '../shapes.js'

/**
 * Floating-point operations of one forward and backward pass through frozen weights with LoRA of rank `r` on all linear layers: the
 * weights' products and those of the adapters, attention's (two products forward, five backward) and the head's, for the rows that
 * need them. What is done a second time, looked up or added by element is not counted.
 */
export function trainingOperations(batch: BatchData, shape: (typeof SHAPES)[ShapeName], r: number): number {
  const { hidden_size: hidden, intermediate_size: intermediate, num_hidden_layers: layers, vocab_size: vocabulary } = shape
  const kv = (hidden / shape.num_attention_heads) * shape.num_key_value_heads
  const tokens = batch.inputIds.length
  const labelled = new Set(batch.targetRows)
  const seen = (rows: Iterable<number>) => [...rows].reduce((sum, row) => sum + batch.positions[row]! + 1, 0)

  // A product with [inputs, outputs] weights takes 2 * inputs * outputs a row; an adapter as much for its two factors, and in the
  // backward pass twice that, for its own gradients and for its input's.
  const adapted = (inputs: number, outputs: number, passes: number) =>
    2 * passes * inputs * outputs + 3 * 2 * r * (inputs + outputs)
  const keysAndValues = 2 * adapted(hidden, kv, 2)
  const queries = adapted(hidden, hidden, 2)
  const rest = adapted(hidden, hidden, 2) + 2 * adapted(hidden, intermediate, 2) + adapted(intermediate, hidden, 2)
  // The last layer serves labelled rows alone, but for its keys and values; the first has nothing below it to pass gradients to.
  const products =
    tokens * (layers * keysAndValues + (layers - 1) * (queries + rest)) +
    labelled.size * (queries + rest) -
    tokens * 2 * hidden * (hidden + 2 * kv)
  const attention = (2 + 5) * 2 * hidden * ((layers - 1) * seen(batch.positions.keys()) + seen(labelled))
  const head = labelled.size * 2 * 2 * vocabulary * hidden
  return products + attention + head
}
