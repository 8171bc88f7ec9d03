import { scope } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'
import { Tape, withTape } from './tape.js'

/**
 * Computes `fn(...inputs)` keeping only the inputs, and computes it again in the backward pass (Chen et al. 2016, "Training deep
 * nets with sublinear memory cost"). Every tensor that `fn` reads must be among the inputs or be held by the tape.
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]): Tensor {
  const outer = Tape.current
  if (!outer) return scope(() => fn(...inputs))
  const tracked = inputs.filter((tensor) => outer.tracks(tensor))
  const rehearsal = new Tape(tracked, { dryRun: true })
  const y = withTape(rehearsal, () => scope(() => fn(...inputs)))
  if (!rehearsal.tracks(y)) return y
  outer.record(y, inputs, (dy, gradients) => {
    const tape = new Tape(tracked)
    const again = withTape(tape, () => scope(() => fn(...inputs)))
    const left = tape.differentiate(again, dy)
    for (const tensor of tracked) {
      const gradient = left.take(tensor)
      if (!gradient) continue
      gradients.add(tensor, gradient)
      gradient.release()
    }
  })
  return y
}
