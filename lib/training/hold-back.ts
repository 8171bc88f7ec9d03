import type { Device } from '../tensor/device.js'

/** Keeps a loop that queues work from running away from the device. */
export class HoldBack {
  readonly #outstanding: Promise<unknown>[] = []

  /** @param ahead - pieces of work that may be outstanding */
  constructor(
    readonly device: Device,
    readonly ahead = 2,
  ) {}

  /** Call after each piece was queued: resolves once at most `ahead` are outstanding. */
  async queued(): Promise<void> {
    const settled = this.device.settled()
    settled.catch(() => {}) // reported where it is awaited
    this.#outstanding.push(settled)
    if (this.#outstanding.length > this.ahead) await this.#outstanding.shift()
  }
}
