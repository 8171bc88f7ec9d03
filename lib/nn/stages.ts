import { checkpoint } from '../autograd/index.js'
import { keep, scope } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'

/**
 * Runs x through the stages of a network, each in a scope of its own, and lets go of every stage's input once it is used: what stays
 * is what the tape holds. With `recompute`, all stages but the last keep only their input for the backward pass.
 */
export function runStages(x: Tensor, stages: readonly ((x: Tensor) => Tensor)[], recompute: boolean): Tensor {
  let current = x
  for (const [i, stage] of stages.entries()) {
    const input = current
    const last = i === stages.length - 1
    const output = recompute && !last ? checkpoint(stage, [input]) : scope(() => stage(input))
    current = last ? output : keep(output)
    if (i > 0) input.dispose()
  }
  return current
}
