import { invalidArgument, QuantuneError } from '../errors.js'
import type { Device, MappedFile } from './device.js'
import {
  bytesPerElement,
  type DType,
  dtypeNumber,
  hostArray,
  isQuantized,
  type Purpose,
  purposeNumber,
  stageable,
  type TensorData,
} from './dtype.js'
import { putInteger, type Queue } from './queue.js'
import { adopt } from './scope.js'

export interface FourBitOptions {
  type: 'nf4' | 'fp4'
  blockSize: 64 | 128
  doubleQuant: boolean
}

/** LLM.int8 (Dettmers et al. 2022): int8 codes with a scale for each output of the layer. */
export interface LlmInt8Options {
  type: 'llm_int8'
  /** Columns of the input with a magnitude of at least this are multiplied in floating point; 0: none are. */
  threshold: number
  /** The shape is [inputs, outputs]. Default: false. */
  transposed?: boolean
}

export type QuantizationOptions = FourBitOptions | LlmInt8Options

const MOST_DIMENSIONS = 4
const LARGEST_DIMENSION = 2 ** 31 - 1

// The backstop for tensors that no scope owns and nobody disposed.
const collected = new FinalizationRegistry<{ queue: Queue; handle: number }>(({ queue, handle }) => queue.releaseHandle(handle))

export function releaseWhenCollected(tensor: Tensor): void {
  collected.register(tensor, { queue: tensor.device.queue, handle: tensor.handle }, tensor)
}

function sizeOf(shape: readonly number[]): number {
  if (shape.length > MOST_DIMENSIONS)
    throw invalidArgument(`a tensor has at most ${MOST_DIMENSIONS} dimensions, got ${shape.length}`)
  let size = 1
  for (const dimension of shape) {
    if (!Number.isInteger(dimension) || dimension < 0 || dimension > LARGEST_DIMENSION) {
      throw invalidArgument(`a shape holds integers >= 0, got [${shape.join(', ')}]`)
    }
    size *= dimension
  }
  return size
}

function defaultDtype(data: TensorData): DType {
  if (data instanceof Int32Array) return 'int32'
  if (data instanceof Uint8Array) return 'uint8'
  if (data instanceof Int8Array) return 'int8'
  if (data instanceof Uint16Array) throw invalidArgument("a Uint16Array needs a dtype: 'bfloat16' or 'float16'")
  return 'float32'
}

/**
 * A small handle on a reference-counted buffer of a device: contiguous, row-major. Creating one queues its allocation; nothing
 * waits until its data is read. A new tensor belongs to the innermost {@link scope}; without one, to the caller, who disposes it.
 */
export class Tensor {
  readonly device: Device
  readonly shape: readonly number[]
  readonly dtype: DType
  /** The number of elements. */
  readonly size: number
  readonly #queue: Queue
  #references = 1
  #handle: number

  private constructor(device: Device, shape: readonly number[], dtype: DType, size: number) {
    this.device = device
    this.shape = shape
    this.dtype = dtype
    this.size = size
    this.#queue = device.queue
    this.#handle = device.queue.newHandle()
  }

  static #create(device: Device, shape: readonly number[], dtype: DType, purpose: Purpose, quantization: number): Tensor {
    const size = sizeOf(shape)
    const dtypeId = dtypeNumber[dtype]
    const purposeId = purposeNumber[purpose]
    if (dtypeId === undefined) throw invalidArgument(`unknown dtype ${String(dtype)}`)
    if (purposeId === undefined) throw invalidArgument(`unknown purpose ${String(purpose)}`)
    const tensor = new Tensor(device, shape.slice(), dtype, size)
    const queue = device.queue
    const at = queue.reserve(device.protocol.create, 6 + shape.length)
    const words = queue.words
    words[at + 1] = tensor.#handle
    words[at + 2] = dtypeId
    words[at + 3] = purposeId
    words[at + 4] = quantization
    words[at + 5] = shape.length
    for (let i = 0; i < shape.length; i++) words[at + 6 + i] = shape[i]!
    queue.commit()
    adopt(tensor)
    return tensor
  }

  /** Not initialised. */
  static empty(device: Device, shape: readonly number[], dtype: DType = 'float32', purpose: Purpose = 'activations'): Tensor {
    if (isQuantized(dtype)) throw invalidArgument(`a ${dtype} tensor is made by Tensor.emptyQuantized`)
    return Tensor.#create(device, shape, dtype, purpose, 0)
  }

  static zeros(device: Device, shape: readonly number[], dtype: DType = 'float32', purpose: Purpose = 'activations'): Tensor {
    const tensor = Tensor.empty(device, shape, dtype, purpose)
    device.ops.fill(tensor, 0)
    return tensor
  }

  /**
   * A copy of `data`, taken at once. Without a dtype: int32 of an Int32Array, uint8 and int8 of theirs, else float32; a dtype
   * converts floats. A Uint16Array is the bits of a bfloat16 or float16 tensor.
   */
  static from(
    device: Device,
    data: TensorData,
    shape?: readonly number[],
    dtype?: DType,
    purpose: Purpose = 'activations',
  ): Tensor {
    const type = dtype ?? defaultDtype(data)
    const dimensions = shape ?? [data.length]
    if (sizeOf(dimensions) !== data.length) {
      throw invalidArgument(`${data.length} values do not fill the shape [${dimensions.join(', ')}]`)
    }
    const source = stageable(data, type)
    checkConversion(source.from, type)
    const tensor = Tensor.empty(device, dimensions, type, purpose)
    device.writeStaged(tensor.#handle, source.array, dtypeNumber[source.from])
    return tensor
  }

  /** A quantized weight, not initialised: an output of `quantize` or `quantized_load`. */
  static emptyQuantized(
    device: Device,
    shape: readonly number[],
    options: QuantizationOptions,
    purpose: Purpose = 'weights',
  ): Tensor {
    return Tensor.#create(device, shape, options.type, purpose, quantizationWord(options, shape))
  }

  /** A copy of a range of a mapped file that holds `dtype` elements; queued, so errors arrive when the tensor is read. */
  static fromFile(
    device: Device,
    file: MappedFile,
    byteOffset: number,
    shape: readonly number[],
    dtype: DType,
    purpose: Purpose = 'weights',
  ): Tensor {
    const bytes = sizeOf(shape) * bytesPerElement(dtype)
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset + bytes > file.size) {
      throw invalidArgument(`bytes ${byteOffset} to ${byteOffset + bytes} are not inside ${file.path} (${file.size} bytes)`)
    }
    const tensor = Tensor.empty(device, shape, dtype, purpose)
    const at = device.queue.reserve(device.protocol.writeFile, 5)
    const words = device.queue.words
    words[at + 1] = tensor.#handle
    words[at + 2] = file.idOn(device)
    putInteger(words, at + 3, byteOffset)
    device.queue.commit()
    return tensor
  }

  /** The native handle; 0 once disposed. */
  get handle(): number {
    return this.#handle
  }

  get disposed(): boolean {
    return this.#handle === 0
  }

  /** Overwrites the data, in the order of the queue. `data` is copied at once. */
  write(data: TensorData): void {
    this.#assertAlive('write')
    if (data.length !== this.size) throw invalidArgument(`write: ${data.length} values for a tensor of ${this.size}`)
    const source = stageable(data, this.dtype)
    checkConversion(source.from, this.dtype)
    this.device.writeStaged(this.#handle, source.array, dtypeNumber[source.from])
  }

  /** The same buffer under another shape of as many elements. One dimension may be -1. */
  view(shape: readonly number[]): Tensor {
    this.#assertAlive('view')
    const known = shape.reduce((product, dimension) => (dimension === -1 ? product : product * dimension), 1)
    const dimensions = shape.map((dimension) => (dimension === -1 ? this.size / known : dimension))
    if (shape.filter((d) => d === -1).length > 1 || sizeOf(dimensions) !== this.size) {
      throw invalidArgument(`view: [${this.shape.join(', ')}] has no shape [${shape.join(', ')}]`)
    }
    return this.#viewAt(0, dimensions)
  }

  /** The same buffer, `count` entries of the first dimension from `start` on. */
  rows(start: number, count: number): Tensor {
    this.#assertAlive('rows')
    const length = this.shape[0] ?? 0
    const inside = Number.isInteger(start) && Number.isInteger(count) && start >= 0 && count >= 0 && start + count <= length
    if (!inside) throw invalidArgument(`rows: ${count} from ${start} are not inside the first dimension of ${length}`)
    if (isQuantized(this.dtype)) throw invalidArgument(`rows: a ${this.dtype} tensor has no views of rows`)
    return this.#viewAt(length === 0 ? 0 : (this.size / length) * start, [count, ...this.shape.slice(1)])
  }

  #viewAt(first: number, shape: number[]): Tensor {
    const { device } = this
    const tensor = new Tensor(device, shape, this.dtype, sizeOf(shape))
    const queue = device.queue
    const at = queue.reserve(device.protocol.view, 6 + shape.length)
    const words = queue.words
    words[at + 1] = tensor.#handle
    words[at + 2] = this.#handle
    putInteger(words, at + 3, first)
    words[at + 5] = shape.length
    for (let i = 0; i < shape.length; i++) words[at + 6 + i] = shape[i]!
    queue.commit()
    adopt(tensor)
    return tensor
  }

  /** Adds a reference; each is dropped by one {@link dispose}. */
  retain(): this {
    this.#assertAlive('retain')
    this.#references++
    return this
  }

  /** Drops a reference; the last one frees the buffer once the operations queued before have run. Later calls do nothing. */
  dispose(): void {
    if (this.#handle === 0 || --this.#references > 0) return
    const handle = this.#handle
    this.#handle = 0
    collected.unregister(this)
    this.#queue.releaseHandle(handle)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** A copy of the data once everything queued before has run; bfloat16 and float16 arrive as Float32Array. */
  async data(): Promise<Float32Array | Int32Array | Int8Array | Uint8Array> {
    this.#assertAlive('data')
    const { array, as } = hostArray(this.dtype, this.size)
    await this.device.readInto(this.#handle, array, dtypeNumber[as])
    return array
  }

  /** The value of a tensor of one element. */
  async item(): Promise<number> {
    if (this.size !== 1) throw invalidArgument(`item: the tensor has ${this.size} elements, not 1`)
    return (await this.data())[0]!
  }

  toString(): string {
    return `Tensor(${this.dtype} [${this.shape.join(', ')}]${this.disposed ? ', disposed' : ''})`
  }

  #assertAlive(what: string): void {
    if (this.#handle === 0)
      throw new QuantuneError('ERR_DISPOSED', `${what}: the tensor [${this.shape.join(', ')}] is disposed`)
  }
}

/** As csrc/core/protocol.h has it. */
function quantizationWord(options: QuantizationOptions, shape: readonly number[]): number {
  if (options.type === 'llm_int8') {
    const { threshold, transposed } = options
    if (!(threshold >= 0 && Number.isFinite(Math.fround(threshold))))
      throw invalidArgument(`threshold must be a number >= 0, got ${String(threshold)}`)
    if (shape.length !== 2) throw invalidArgument(`an llm_int8 weight is a matrix, got [${shape.join(', ')}]`)
    const [bits] = new Int32Array(Float32Array.of(Math.abs(threshold)).buffer)
    return transposed ? bits! | (1 << 31) : bits!
  }
  const { type, blockSize, doubleQuant } = options
  if (type !== 'nf4' && type !== 'fp4') throw invalidArgument(`a quantized type is nf4, fp4 or llm_int8, got ${String(type)}`)
  if (blockSize !== 64 && blockSize !== 128) throw invalidArgument(`blockSize must be 64 or 128, got ${String(blockSize)}`)
  return blockSize | (doubleQuant ? 1 << 16 : 0)
}

function checkConversion(from: DType, to: DType): void {
  const float = to === 'float32' || to === 'bfloat16' || to === 'float16'
  if (from !== to && !float) throw invalidArgument(`${from} data cannot be written into a ${to} tensor`)
}
