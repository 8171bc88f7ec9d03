import type { NativeAddon, NativeDevice } from '../../types/native.js'
import { QuantuneError } from '../errors.js'
import { currentSite } from './call-site.js'

/** Records are published in groups of this many, at every read, and at the end of the current macrotask's synchronous part. */
const GROUP = 32
const LAST_GENERATION = 2047

interface Page {
  id: number
  words: Int32Array
  /** The count of words published when the page has been written to its end. */
  end: number
}

/**
 * The writing end of a device's queue: records of 32-bit words in pages of shared memory that the device's thread reads
 * (csrc/core/protocol.h). It also gives out the handles: a slot in the low bits, its generation above, so that a handle is
 * never mistaken for the one that had its slot before.
 */
export class Queue {
  readonly #native: NativeDevice
  readonly #protocol: NativeAddon['protocol']
  readonly #control: Int32Array
  readonly #full: Page[] = []
  #page: Page
  #pages = 1
  #unpublished = 0
  #flushing = false
  #site = 0

  /** The current page. A record begins at the index that {@link reserve} returned. */
  words: Int32Array
  #at = 0
  #start = 0

  readonly #generations: number[] = []
  readonly #freeSlots: number[] = []

  constructor(protocol: NativeAddon['protocol'], open: (control: Int32Array, firstPage: Int32Array) => NativeDevice) {
    this.#protocol = protocol
    this.#control = new Int32Array(protocol.controlWords)
    this.words = new Int32Array(protocol.pageWords)
    this.#page = { id: 0, words: this.words, end: protocol.pageWords }
    this.#native = open(this.#control, this.words)
  }

  get native(): NativeDevice {
    return this.#native
  }

  /** Room for a record of `length` words; its header is written. Follow it with {@link commit}. */
  reserve(opcode: number, length: number): number {
    if (this.#site !== currentSite) this.#writeSite()
    if (this.#at + length + 2 > this.words.length) this.#turnPage(length)
    this.words[this.#at] = (length << this.#protocol.opcodeBits) | opcode
    const at = this.#at
    this.#at += length
    return at
  }

  commit(): void {
    if (++this.#unpublished >= GROUP) this.publish()
    else if (!this.#flushing) this.#flushLater()
  }

  /** A record whose operands are single words. */
  write(opcode: number, ...operands: number[]): void {
    const at = this.reserve(opcode, operands.length + 1)
    for (let i = 0; i < operands.length; i++) this.words[at + 1 + i] = operands[i]!
    this.commit()
  }

  publish(): void {
    this.#unpublished = 0
    Atomics.store(this.#control, this.#protocol.controlTail, (this.#start + this.#at) | 0)
    if (Atomics.load(this.#control, this.#protocol.controlSleeping) === 1) this.#native.wake()
  }

  newHandle(): number {
    const slot = this.#freeSlots.pop() ?? this.#generations.length
    if (slot >> this.#protocol.slotBits !== 0) throw new QuantuneError('ERR_DEVICE', 'too many tensors are alive at once')
    const generation = this.#generations[slot] ?? 1
    this.#generations[slot] = generation
    return slot | (generation << this.#protocol.slotBits)
  }

  releaseHandle(handle: number): void {
    const slot = handle & ((1 << this.#protocol.slotBits) - 1)
    this.#generations[slot] = (this.#generations[slot]! % LAST_GENERATION) + 1
    this.#freeSlots.push(slot)
    const at = this.reserve(this.#protocol.release, 2)
    this.words[at + 1] = handle
    this.commit()
  }

  #writeSite(): void {
    this.#site = currentSite
    const at = this.reserve(this.#protocol.site, 2)
    this.words[at + 1] = currentSite
    this.#unpublished++
  }

  #flushLater(): void {
    this.#flushing = true
    queueMicrotask(() => {
      this.#flushing = false
      if (this.#unpublished > 0) this.publish()
    })
  }

  /** Goes on in the oldest page if the device's thread is done with it, else in a new one. */
  #turnPage(length: number): void {
    const { pageWords, controlHead, opcodeBits, nextPage } = this.#protocol
    if (length + 2 > pageWords) {
      throw new QuantuneError(
        'ERR_INVALID_ARGUMENT',
        `an operation on so many tensors (${length} words) does not fit the queue`,
      )
    }
    const oldest = this.#full[0]
    let page: Page
    if (oldest && ((Atomics.load(this.#control, controlHead) - oldest.end) | 0) >= 0) {
      page = this.#full.shift()!
    } else {
      page = { id: this.#pages++, words: new Int32Array(pageWords), end: 0 }
      this.#native.addPage(page.id, page.words)
    }
    this.words[this.#at] = (2 << opcodeBits) | nextPage
    this.words[this.#at + 1] = page.id
    this.#full.push(this.#page)
    this.#start = (this.#start + pageWords) | 0
    page.end = (this.#start + pageWords) | 0
    this.#page = page
    this.words = page.words
    this.#at = 0
  }
}

const scratchDouble = new Float64Array(1)
const scratchWords = new Int32Array(scratchDouble.buffer)

/** Writes a float64 as two words. */
export function putDouble(words: Int32Array, at: number, value: number): void {
  scratchDouble[0] = value
  words[at] = scratchWords[0]!
  words[at + 1] = scratchWords[1]!
}

/** Writes a safe integer as an int64 in two words, the low one first. */
export function putInteger(words: Int32Array, at: number, value: number): void {
  words[at] = value | 0
  words[at + 1] = Math.floor(value / 2 ** 32) | 0
}
