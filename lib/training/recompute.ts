import { freemem } from 'node:os'
import { activationBytes } from '../model/memory.js'
import type { TrainableModel } from './model.js'

/** Share of the free memory that a micro-batch's activations may take before they are recomputed instead. */
const SHARE = 0.7

/** Free bytes as the container sees them, where Node can tell. */
const availableMemory = () => (process as { availableMemory?: () => number }).availableMemory?.() ?? freemem()

/**
 * Whether a micro-batch of so many tokens recomputes its activations in the backward pass. With 'auto' it does where they would not fit
 * into memory otherwise; as recomputing gives the same bits, the choice may differ from one micro-batch to the next.
 *
 * @param available - free bytes beside what the device holds for reuse
 */
export function recomputesActivations(
  choice: boolean | 'auto',
  { device, dtype, network }: Pick<TrainableModel, 'device' | 'dtype' | 'network'>,
  tokens: number,
  available: () => number = availableMemory,
): boolean {
  if (choice !== 'auto') return choice
  const { current, cached } = device.memoryUsage()
  const free = available() + cached + current.activations
  return activationBytes(network, tokens, dtype === 'float32' ? 4 : 2, false) > SHARE * free
}
