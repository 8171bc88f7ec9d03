import { attention } from '../autograd/index.js'
import { Batch } from '../data/batch.js'
import type { Attend, CausalLM } from '../models/causal-lm.js'
import { attendSegments, attentionMask } from '../nn/attention.js'
import type { Adapter } from '../peft/adapter.js'
import type { Device } from '../tensor/device.js'
import { Tensor } from '../tensor/tensor.js'
import type { PromptCache } from './cache.js'
import type { AdmittedPrompt } from './prompt-queue.js'

export interface PrefillInput {
  network: CausalLM
  device: Device
  adapter: Adapter | null
  cache: PromptCache
  /** Whether others will attend to these prompts later. Default: true. */
  keep?: boolean
}

/**
 * Queues one pass over prompts: computes the tokens whose keys and values are not in the cache yet, each once, and writes them there.
 * What is in the cache already is only attended to.
 *
 * @param wanted per prompt the positions whose output is wanted
 * @returns the network's output [R, hiddenSize], in the current scope, and per prompt the rows of it that were wanted
 */
export function prefill(
  { network, device, adapter, cache, keep = true }: PrefillInput,
  prompts: readonly AdmittedPrompt[],
  wanted: readonly (readonly number[])[],
): { hidden: Tensor; rows: Int32Array[] } {
  const tree = Batch.pack(prompts.map(({ inputIds }) => ({ inputIds })))
  const slots = new Int32Array(tree.numTokens)
  const isWanted = new Uint8Array(tree.numTokens)
  for (const [i, prompt] of prompts.entries()) {
    const rows = tree.sampleRows[i]!
    for (const [t, row] of rows.entries()) slots[row] = prompt.slots[t]!
    for (const t of wanted[i]!) isWanted[rows[t]!] = 1
  }
  // A token that is in the cache is computed once more where its output is wanted, but not written.
  const all = slots.map((_, row) => row)
  const asking = all.filter((row) => isWanted[row] === 1 || !cache.isComputed(slots[row]!))
  const written = asking.map((row) => (cache.isComputed(slots[row]!) ? -1 : slots[row]!))
  for (const slot of slots) cache.setComputed(slot)
  const output = all.filter((row) => isWanted[row] === 1)
  const anew = asking.length === all.length
  const placeOf = new Map(Array.from(asking, (row, place) => [row, place]))

  const int32 = (data: Int32Array) => Tensor.from(device, data, [data.length], 'int32')
  const outputRows = int32(output.map((row) => placeOf.get(row)!))
  const hidden = network.hidden({
    inputIds: int32(asking.map((row) => tree.inputIds[row]!)),
    positions: int32(asking.map((row) => tree.positions[row]!)),
    attend:
      anew && !keep
        ? attendSegments(int32(tree.end), outputRows)
        : attendCached(cache, {
            end: int32(tree.end),
            asking: anew ? null : int32(asking),
            output: int32(output),
            written: int32(written),
            slots: int32(slots),
          }),
    outputRows,
    adapter,
  })
  const rowOf = new Map(Array.from(output, (row, i) => [row, i]))
  return {
    hidden,
    rows: prompts.map((_, i) => Int32Array.from(wanted[i]!, (t) => rowOf.get(tree.sampleRows[i]![t]!)!)),
  }
}

/** A pass's stream in tensors, int32: who asks (null: all), who asks in the last layer, where keys are written, where all keys lie. */
interface Stream {
  end: Tensor
  asking: Tensor | null
  output: Tensor
  written: Tensor
  slots: Tensor
}

function attendCached(cache: PromptCache, { end, asking, output, written, slots }: Stream): Attend {
  const mask = attentionMask(asking, end)
  const pruned = attentionMask(output, end)
  return (layer, q, k, v, rows) => {
    const { ops } = q.device
    const cached = cache.of(layer, k.dtype)
    ops.kv_write(cached.k, cached.v, k, v, written)
    const gather = (from: Tensor, own: Tensor) => {
      if (!asking) return own
      const keys = Tensor.empty(q.device, [slots.shape[0]!, ...own.shape.slice(1)], own.dtype)
      ops.gather_rows(keys, from.view([from.shape[0]!, ...own.shape.slice(1)]), slots)
      return keys
    }
    return attention(q, gather(cached.k, k), gather(cached.v, v), rows ? pruned : mask, 1 / Math.sqrt(q.shape[2]!))
  }
}
