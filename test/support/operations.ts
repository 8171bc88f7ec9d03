import type { Device } from '../../lib/tensor/device.js'
import { Tensor } from '../../lib/tensor/tensor.js'

/** For each call of an operation the shapes of its tensor operands, null for one that is absent; scalars as they are. */
export type Calls = Record<string, (readonly number[] | null)[][]>

/**
 * The operations that `fn` queues, by name. What a replayed program repeats counts once, when it is recorded.
 * @param names of the operations to look at; default: all
 */
export async function countOperations(device: Device, names: readonly string[] | null, fn: () => unknown): Promise<Calls> {
  const ops = device.ops as unknown as Record<string, (...args: unknown[]) => void>
  const original = { ...ops }
  const calls: Calls = {}
  for (const name of names ?? Object.keys(original)) {
    ops[name] = (...args) => {
      calls[name] ??= []
      calls[name].push(args.map((arg) => (arg instanceof Tensor ? arg.shape : typeof arg === 'number' ? [arg] : null)))
      original[name]!(...args)
    }
  }
  try {
    await fn()
  } finally {
    Object.assign(ops, original)
  }
  return calls
}
