import { invalidArgument } from '../errors.js'
import { scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { Gradient, Gradients } from './gradients.js'
import { kept, Recipe, type SavedTensor } from './saved.js'

/** Given the gradient of an operation's output, queues those of its inputs and parameters. */
export type BackwardFunction = (dy: Gradient, gradients: Gradients) => void

interface Entry {
  output: Tensor
  saved: { dispose(): void }[]
  backward: BackwardFunction
}

/** The tape that led to a tensor, for `backward(loss)`. */
const tapes = new WeakMap<Tensor, Tape>()

/**
 * What a forward pass leaves for its backward pass: one entry per operation that a gradient flows through, in order. An entry holds
 * references on the tensors that its backward function reads and drops them as soon as that has run.
 */
export class Tape {
  /** The tape that operations record on; null: nothing is recorded. */
  static current: Tape | null = null
  /** Inside `noGrad`: who would begin a tape of its own (a model's forward call) does not. */
  static disabled = false

  readonly #entries: Entry[] = []
  readonly #tracked: Set<Tensor>
  readonly #recipes = new Map<Tensor, Recipe>()
  readonly #held: Tensor[] = []
  readonly #keepsEntries: boolean
  #used = false

  /** @param inputs tensors whose gradients are wanted, although no entry of this tape made them */
  constructor(inputs: Iterable<Tensor> = [], options: { dryRun?: boolean } = {}) {
    this.#tracked = new Set(inputs)
    this.#keepsEntries = !options.dryRun
  }

  /** Whether a gradient flows to x. */
  tracks(x: Tensor): boolean {
    return this.#tracked.has(x)
  }

  /**
   * Records an operation.
   * @param saved what its backward function reads: held until that has run
   * @param recompute makes the output again from what is saved; who reads the output later need not keep it then
   */
  record(
    output: Tensor,
    saved: readonly (Tensor | SavedTensor | null)[],
    backward: BackwardFunction,
    recompute?: () => Tensor,
  ): void {
    this.#tracked.add(output)
    const held = saved.filter((item) => item !== null).map((item) => (item instanceof Tensor ? item.retain() : item))
    if (this.#keepsEntries) {
      tapes.set(output, this)
      if (recompute) this.#recipes.set(output, new Recipe(recompute))
      this.#entries.push({ output, saved: held, backward })
    } else {
      for (const item of held) item.dispose()
    }
  }

  /** For a backward function that reads x: to be passed to `record`. */
  save(x: Tensor): SavedTensor {
    return this.#recipes.get(x)?.reader() ?? kept(x)
  }

  /** Keeps a tensor that several entries share (a rope table, an attention plan) alive until the tape is done. */
  hold(...tensors: (Tensor | null)[]): void {
    for (const tensor of tensors) if (tensor) this.#held.push(tensor.retain())
  }

  /**
   * Runs the tape back from `output`, whose gradient is `dy`, and empties it. What is left are the gradients of the tape's inputs:
   * the caller releases them.
   */
  differentiate(output: Tensor, dy: Gradient): Gradients {
    if (this.#used) throw invalidArgument('backward was called twice: the first pass freed what the second would need')
    this.#used = true
    const gradients = new Gradients()
    try {
      gradients.add(output, dy)
      const previous = Tape.current
      Tape.current = null
      try {
        for (let entry = this.#entries.pop(); entry; entry = this.#entries.pop()) runEntry(entry, gradients)
      } finally {
        Tape.current = previous
      }
      return gradients
    } catch (error) {
      gradients.release()
      throw error
    } finally {
      this.dispose()
    }
  }

  /** Frees everything without going back. */
  dispose(): void {
    this.#used = true
    for (const { saved } of this.#entries) for (const item of saved) item.dispose()
    for (const tensor of this.#held) tensor.dispose()
    this.#entries.length = 0
    this.#held.length = 0
    this.#tracked.clear()
    this.#recipes.clear()
  }
}

function runEntry({ output, saved, backward }: Entry, gradients: Gradients): void {
  const dy = gradients.take(output)
  try {
    // An output that nothing used has no gradient, and what led to it gets none from here.
    if (dy) {
      scope(() => {
        backward(dy, gradients)
      })
    }
  } finally {
    dy?.release()
    for (const item of saved) item.dispose()
  }
}

export function withTape<T>(tape: Tape | null, fn: () => T): T {
  const previous = Tape.current
  Tape.current = tape
  try {
    return fn()
  } finally {
    Tape.current = previous
  }
}

/** Runs `fn` without recording; models called inside keep nothing for a backward pass. */
export function noGrad<T>(fn: () => T): T {
  const previous = Tape.disabled
  Tape.disabled = true
  try {
    return withTape(null, fn)
  } finally {
    Tape.disabled = previous
  }
}

/** The tape to record on if a gradient flows to one of the tensors, or `trainable` says that one is wanted anyway; else null. */
export function recordingFor(tensors: readonly Tensor[], trainable = false): Tape | null {
  const tape = Tape.current
  return tape && (trainable || tensors.some((tensor) => tape.tracks(tensor))) ? tape : null
}

/**
 * Queues the backward pass from `loss` ([1] float32): adds `scale` times its gradients to those of the trainable parameters, and
 * frees the tape.
 */
export function backward(loss: Tensor, scale = 1): void {
  const tape = tapes.get(loss)
  if (!tape) throw invalidArgument('backward: nothing that led to this tensor is trainable, or it was computed without a tape')
  const root = Gradient.uniform(loss, scale)
  tape.differentiate(loss, root).release()
  tapes.delete(loss)
}
