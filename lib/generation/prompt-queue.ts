import type { PromptCache } from './cache.js'

/** A prompt whose place in the cache is taken: its token t has its keys and values in block slots[t]. */
export interface AdmittedPrompt {
  /** Which of the queue's prompts it is. */
  index: number
  inputIds: Int32Array
  slots: Int32Array
}

/**
 * Prompts that wait for their turn, as a trie: sorted by their token ids, a prompt shares with those before it what it shares with its
 * predecessor. So a beginning that several have stays in the cache from the first of them to the last, is computed once, and no longer
 * held than that.
 */
export class PromptQueue {
  readonly #prompts: readonly Int32Array[]
  readonly #cache: PromptCache
  readonly #order: number[]
  /** Tokens that the i-th in order shares with the one before it. */
  readonly #shared: number[]
  #next = 0
  /** The blocks that the next prompt shares with its predecessor, held for it. */
  #held: Int32Array = new Int32Array(0)

  constructor(prompts: readonly Int32Array[], cache: PromptCache) {
    this.#prompts = prompts
    this.#cache = cache
    const { order, shared } = trieOrder(prompts)
    this.#order = order
    this.#shared = shared
  }

  get waiting(): number {
    return this.#order.length - this.#next
  }

  /**
   * Lets prompts in, in order, as far as there is room in the cache.
   * @param count at most so many
   * @param tokens that are to be computed at most; the first prompt may have more
   */
  admit(count: number, tokens: number): AdmittedPrompt[] {
    const admitted: AdmittedPrompt[] = []
    let computed = 0
    while (admitted.length < count && this.waiting > 0) {
      const index = this.#order[this.#next]!
      const inputIds = this.#prompts[index]!
      const shared = this.#held.length
      const own = inputIds.length - shared
      if (own > this.#cache.free || (admitted.length > 0 && computed + own > tokens)) break
      const slots = new Int32Array(inputIds.length)
      slots.set(this.#held)
      slots.set(this.#cache.take(own), shared)
      this.#next++
      // The hold on the beginning becomes the prompt's own; the next one's is added to it.
      this.#held = slots.slice(0, this.#shared[this.#next] ?? 0)
      this.#cache.retain(this.#held)
      admitted.push({ index, inputIds, slots })
      computed += own
    }
    return admitted
  }

  /** The prompt needs its blocks no longer. */
  release({ slots }: AdmittedPrompt): void {
    this.#cache.release(slots)
  }
}

/**
 * Prompts in the order of their trie.
 * @returns `order`, and for each place in it how many tokens that prompt shares with the one before
 */
export function trieOrder(prompts: readonly Int32Array[]): { order: number[]; shared: number[] } {
  const order = prompts.map((_, i) => i).sort((a, b) => compareIds(prompts[a]!, prompts[b]!) || a - b)
  const shared = order.map((prompt, i) => (i === 0 ? 0 : commonPrefix(prompts[order[i - 1]!]!, prompts[prompt]!)))
  return { order, shared }
}

/** Distinct tokens of all prompts: those of their trie. */
export function trieSize(prompts: readonly Int32Array[]): number {
  const { order, shared } = trieOrder(prompts)
  return order.reduce((sum, prompt, i) => sum + prompts[prompt]!.length - shared[i]!, 0)
}

function commonPrefix(a: Int32Array, b: Int32Array): number {
  const length = Math.min(a.length, b.length)
  let i = 0
  while (i < length && a[i] === b[i]) i++
  return i
}

function compareIds(a: Int32Array, b: Int32Array): number {
  const i = commonPrefix(a, b)
  if (i === a.length || i === b.length) return a.length - b.length
  return a[i]! - b[i]!
}
