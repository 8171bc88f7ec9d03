import { invalidArgument } from '../errors.js'
import { releaseWhenCollected, Tensor } from './tensor.js'

let current: Tensor[] | null = null

/** Called for every new tensor: the innermost scope takes its reference, or the caller has it. */
export function adopt(tensor: Tensor): void {
  if (current) current.push(tensor)
  else releaseWhenCollected(tensor)
}

/** Whether a scope is open. */
export function inScope(): boolean {
  return current !== null
}

/**
 * Runs `fn` and drops the references of all tensors created inside, except those in what it returns (a tensor, or arrays, plain
 * objects, Maps and Sets of them, however deep): these pass to the enclosing scope, or to the caller. Synchronous: a promise as
 * result is an error. Inside, dispose only what you retained or kept: the rest is the scope's.
 */
export function scope<T>(fn: () => T): T {
  const outer = current
  const mine: Tensor[] = []
  current = mine
  let result: T
  try {
    result = fn()
  } catch (error) {
    dropAll(mine, null)
    throw error
  } finally {
    current = outer
  }
  if (typeof (result as { then?: unknown } | null | undefined)?.then === 'function') {
    dropAll(mine, null)
    throw invalidArgument('scope() is synchronous: its function must not return a promise')
  }
  const returned = new Set<Tensor>()
  collect(result, returned)
  dropAll(mine, returned)
  return result
}

/** Detaches `tensor` from the current scope: the caller owns it and disposes it. */
export function keep<T extends Tensor>(tensor: T): T {
  const at = current ? current.lastIndexOf(tensor) : -1
  if (at >= 0) {
    current!.splice(at, 1)
    releaseWhenCollected(tensor)
  }
  return tensor
}

function dropAll(tensors: Tensor[], returned: Set<Tensor> | null): void {
  for (const tensor of tensors) {
    if (tensor.disposed) continue
    if (returned?.has(tensor)) adopt(tensor)
    else tensor.dispose()
  }
}

function collect(value: unknown, found: Set<Tensor>): void {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return
  if (value instanceof Tensor) {
    found.add(value)
  } else if (Array.isArray(value) || value instanceof Set) {
    for (const item of value) collect(item, found)
  } else if (value instanceof Map) {
    for (const item of value.values()) collect(item, found)
  } else if (Object.getPrototypeOf(value) === Object.prototype || Object.getPrototypeOf(value) === null) {
    for (const item of Object.values(value)) collect(item, found)
  }
}
