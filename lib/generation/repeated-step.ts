import type { Device, Program } from '../tensor/device.js'

/**
 * A step that is done again and again: queued the first time, which makes what stays; recorded the next time and replayed from then
 * on, until its tensors change. So a token costs little on the JavaScript thread. All that differs between two runs must lie in
 * tensors.
 */
export class RepeatedStep {
  readonly #device: Device
  readonly #queue: () => void
  #program: Program | null = null
  #first = true

  constructor(device: Device, queue: () => void) {
    this.#device = device
    this.#queue = queue
  }

  run(): void {
    if (this.#first) {
      this.#first = false
      this.#queue()
      return
    }
    this.#program ??= this.#device.record(this.#queue)
    this.#device.replay(this.#program)
  }

  /** Other tensors from now on: the step is recorded anew. */
  changed(): void {
    this.#program?.dispose()
    this.#program = null
  }

  dispose(): void {
    this.changed()
  }
}
