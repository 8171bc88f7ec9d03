import { QuantuneError } from '../errors.js'

/**
 * The calls that run on a model's weights. They may overlap; what replaces or frees weights waits until none is left.
 */
export class CallsInFlight {
  readonly #active = new Set<{ kind: string }>()
  #waiting: (() => void)[] = []

  /**
   * @param kind what runs, for messages: 'train', 'generate', …
   * @param exclusive only one call with this key may run at a time (training one adapter)
   * @returns a function that ends the call; calling it again does nothing
   * @throws ERR_BUSY
   */
  begin(kind: string, exclusive?: string): () => void {
    const call = { kind: exclusive ?? kind }
    if (exclusive !== undefined && [...this.#active].some((other) => other.kind === exclusive)) {
      throw new QuantuneError(
        'ERR_BUSY',
        `${kind}: another call of this kind is running on the same adapter; wait for it to end`,
      )
    }
    this.#active.add(call)
    return () => {
      if (!this.#active.delete(call) || this.#active.size > 0) return
      const waiting = this.#waiting
      this.#waiting = []
      for (const resume of waiting) resume()
    }
  }

  /** Resolves at a moment when no call is running; the caller must do its work before it awaits anything. */
  async idle(): Promise<void> {
    while (this.#active.size > 0) await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }
}
