/** Counts work since the last log, and the time it took without evaluations and saves. */
export class Throughput {
  samples = 0
  tokens = 0
  #started = performance.now()
  #paused = 0

  pause(): void {
    this.#paused = performance.now()
  }

  resume(): void {
    this.#started += performance.now() - this.#paused
  }

  /** Samples and tokens per second so far; starts anew. */
  take(): { tokensPerSecond: number; samplesPerSecond: number } {
    const now = performance.now()
    const seconds = (now - this.#started) / 1000
    const rates = { tokensPerSecond: this.tokens / seconds, samplesPerSecond: this.samples / seconds }
    this.samples = 0
    this.tokens = 0
    this.#started = now
    return rates
  }
}
