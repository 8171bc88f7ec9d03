import type { Tensor } from '../tensor/tensor.js'

/** How a new parameter starts. */
export type Initializer =
  | { kind: 'normal'; std: number }
  | { kind: 'uniform'; bound: number }
  | { kind: 'zeros' }
  | { kind: 'ones' }

/** A number below 2^31 for a name (FNV-1a), so that what is drawn for a parameter does not depend on the others. */
export function siteOf(name: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
  return hash >>> 1
}

/** Fills `tensor` as `init` says; the numbers depend on the seed and the name alone. */
export function initialize(tensor: Tensor, name: string, init: Initializer, seed: number): void {
  const { ops } = tensor.device
  if (init.kind === 'normal') ops.random_normal(tensor, seed, siteOf(name), 0, init.std)
  else if (init.kind === 'uniform') ops.random_uniform(tensor, seed, siteOf(name), -init.bound, init.bound)
  else ops.fill(tensor, init.kind === 'ones' ? 1 : 0)
}
