import { open } from 'node:fs/promises'
import { invalidArgument, QuantuneError } from '../errors.js'
import { ioError } from '../formats/errors.js'
import { assertKnownKeys } from '../options.js'
import { Random } from '../training/random.js'

/** Anything with random access. */
export interface IndexedData<T> {
  readonly length: number
  at(index: number): T | Promise<T>
}

/** What a trainer takes: an array, anything indexed, or a function that starts an iteration (then `maxSteps` is needed). */
export type DatasetLike<T> = readonly T[] | IndexedData<T> | (() => AsyncIterable<T>)

/** A data set with random access; its elements are read when they are asked for. */
export class Dataset<T> implements IndexedData<T> {
  readonly #source: IndexedData<T>

  constructor(source: IndexedData<T>) {
    this.#source = source
  }

  static from<T>(elements: readonly T[]): Dataset<T> {
    return new Dataset({ length: elements.length, at: (index) => elements[index]! })
  }

  /**
   * Opens a file with one JSON value a line (empty lines are skipped). The file is read once to find where lines begin and that each is
   * JSON; after that elements are read from it one by one, so it must not change.
   * @throws ERR_IO when it cannot be read, ERR_CORRUPT_FILE naming the line that is no JSON
   */
  static async fromJsonl<T = unknown>(path: string): Promise<Dataset<T>> {
    const lines = await indexLines(path)
    return new Dataset<T>({
      length: lines.length,
      at: async (index) => parseLine(path, lines[index]!.number, await readLine(path, lines[index]!)) as T,
    })
  }

  get length(): number {
    return this.#source.length
  }

  /** @throws ERR_INVALID_ARGUMENT for an index outside the data set */
  at(index: number): T | Promise<T> {
    if (!Number.isInteger(index) || index < 0 || index >= this.length) {
      throw invalidArgument(`index must be an integer in [0, ${this.length}), got ${index}`, { index, length: this.length })
    }
    return this.#source.at(index)
  }

  /** Elements through a function, which is called each time an element is read. */
  map<U>(convert: (element: T, index: number) => U | Promise<U>): Dataset<U> {
    const at = (index: number) => {
      const element = this.at(index)
      return element instanceof Promise ? element.then((value) => convert(value, index)) : convert(element, index)
    }
    return new Dataset<U>({ length: this.length, at: at as (index: number) => U | Promise<U> })
  }

  /** The elements for which `keep` holds; reads all of them once. */
  async filter(keep: (element: T, index: number) => boolean | Promise<boolean>): Promise<Dataset<T>> {
    const kept: number[] = []
    for (let index = 0; index < this.length; index++) if (await keep(await this.at(index), index)) kept.push(index)
    return this.select(kept)
  }

  /** The elements at these indices, in this order. */
  select(indices: ArrayLike<number>): Dataset<T> {
    const chosen = Uint32Array.from(indices)
    const outside = chosen.findIndex((index) => index >= this.length)
    if (outside >= 0) throw invalidArgument(`index must be below ${this.length}, got ${chosen[outside]}`)
    return new Dataset<T>({ length: chosen.length, at: (index) => this.at(chosen[index]!) })
  }

  /** All elements in a random order that depends on `seed` alone. */
  shuffle(seed: number): Dataset<T> {
    return this.select(new Random(seed).shuffle(Uint32Array.from({ length: this.length }, (_, index) => index)))
  }

  /**
   * Splits at random, without overlap.
   * @param options.testSize below 1 a share (rounded up), else a number of elements
   * @param options.seed of the shuffle; default 42
   * @throws ERR_INVALID_ARGUMENT when either part would be empty
   */
  trainTestSplit(options: { testSize: number; seed?: number }): { train: Dataset<T>; test: Dataset<T> } {
    assertKnownKeys(options, ['testSize', 'seed'], 'trainTestSplit')
    const { testSize, seed = 42 } = options
    const count = testSize < 1 ? Math.ceil(testSize * this.length) : testSize
    if (!Number.isInteger(count) || count < 1 || count >= this.length) {
      throw invalidArgument(`testSize must leave both parts an element: got ${testSize} of ${this.length}`, { testSize })
    }
    const order = new Random(seed).shuffle(Uint32Array.from({ length: this.length }, (_, index) => index))
    return { test: this.select(order.subarray(0, count)), train: this.select(order.subarray(count)) }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for (let index = 0; index < this.length; index++) yield await this.at(index)
  }

  async toArray(): Promise<T[]> {
    const elements: T[] = []
    for await (const element of this) elements.push(element)
    return elements
  }
}

interface Line {
  /** In the file, from 1. */
  number: number
  start: number
  length: number
}

const NEWLINE = 0x0a
const BYTE_ORDER_MARK = '\uFEFF'

/** Where the lines of a file lie that are not blank; checks on the way that each is JSON. */
async function indexLines(path: string): Promise<Line[]> {
  const lines: Line[] = []
  let number = 0
  let start = 0
  const add = (bytes: Buffer) => {
    number++
    const text = bytes.toString('utf8').replace(BYTE_ORDER_MARK, '')
    if (text.trim() !== '') {
      parseLine(path, number, text)
      lines.push({ number, start, length: bytes.length })
    }
    start += bytes.length + 1
  }
  try {
    await using file = await openFile(path)
    let pending: Buffer[] = []
    for await (const chunk of file.handle.createReadStream({ autoClose: false, highWaterMark: 1 << 20 })) {
      const bytes = chunk as Buffer
      let from = 0
      for (let to = bytes.indexOf(NEWLINE); to >= 0; to = bytes.indexOf(NEWLINE, from)) {
        add(Buffer.concat([...pending, bytes.subarray(from, to)]))
        pending = []
        from = to + 1
      }
      pending.push(bytes.subarray(from))
    }
    add(Buffer.concat(pending))
  } catch (error) {
    throw ioError('cannot read', path, error)
  }
  return lines
}

async function readLine(path: string, { start, length }: Line): Promise<string> {
  try {
    await using file = await openFile(path)
    const bytes = Buffer.alloc(length)
    const { bytesRead } = await file.handle.read(bytes, 0, length, start)
    return bytes.toString('utf8', 0, bytesRead).replace(BYTE_ORDER_MARK, '')
  } catch (error) {
    throw ioError('cannot read', path, error)
  }
}

async function openFile(path: string) {
  const handle = await open(path, 'r')
  return { handle, [Symbol.asyncDispose]: () => handle.close() }
}

function parseLine(path: string, number: number, text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    const message = `${path}: line ${number} is no JSON: ${(cause as Error).message}`
    throw new QuantuneError('ERR_CORRUPT_FILE', message, { details: { path, line: number }, cause })
  }
}
