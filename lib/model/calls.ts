import { QuantuneError } from '../errors.js'

/** The key of trainings of one adapter (null: of the base), of which one may run at a time. */
export const trainingOf = (adapter: string | null) => (adapter === null ? 'train the base' : `train adapter "${adapter}"`)

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
      for (const run of waiting) run()
    }
  }

  /** Whether a call with this key, or any call, is running. */
  isRunning(exclusive?: string): boolean {
    return exclusive === undefined ? this.#active.size > 0 : [...this.#active].some(({ kind }) => kind === exclusive)
  }

  /** @throws ERR_BUSY while a call is running: for what would change the model under it and cannot wait */
  refuseWhileBusy(what: string): void {
    const [call] = this.#active
    if (!call) return
    const message = `${what}: a call on this model is running (${call.kind}) and would see it change; wait for it to end`
    throw new QuantuneError('ERR_BUSY', message, { details: { running: [...this.#active].map(({ kind }) => kind) } })
  }

  /**
   * Runs `work` at a moment when no call is running, at once if that is now. It is synchronous, so that no call begins between that
   * moment and the work's end.
   */
  whenIdle<T>(work: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const run = () => {
        try {
          resolve(work())
        } catch (error) {
          reject(error)
        }
      }
      if (this.#active.size === 0) run()
      else this.#waiting.push(run)
    })
  }
}
