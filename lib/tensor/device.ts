import type { NativeAddon, NativeDevice } from '../../types/native.js'
import { env, log } from '../env.js'
import { type ErrorCode, invalidArgument, QuantuneError } from '../errors.js'
import { loadNative, pluginFolder } from '../native.js'
import { findSite } from './call-site.js'
import { dtypes, type Purpose, purposes } from './dtype.js'
import { buildOps, type Ops } from './ops.js'
import { whyRefused } from './probe.js'
import { Queue } from './queue.js'

export interface MemoryUsage {
  /** Bytes of the tensors that are alive, by purpose. */
  current: Record<Purpose, number> & { total: number }
  /** The most there has been since the device was opened, or since `resetPeak()`. */
  peak: Record<Purpose, number> & { total: number }
  /** Bytes freed by tensors and kept for the next ones. */
  cached: number
}

interface Request {
  resolve(): void
  reject(error: Error): void
  /** Kept alive until the queue has written into it. */
  destination: NodeJS.TypedArray | null
}

/** `qt_status` in csrc/core/abi.h. */
const codeOfStatus: readonly ErrorCode[] = [
  'ERR_DEVICE',
  'ERR_INVALID_ARGUMENT',
  'ERR_OUT_OF_MEMORY',
  'ERR_DEVICE',
  'ERR_DEVICE',
  'ERR_DEVICE',
]
const OUT_OF_MEMORY = 2

const devices = new Map<string, Promise<Device>>()

/** A device and its in-order queue: what is called on it runs in that order, on the queue's own thread. */
export class Device {
  readonly name: string
  readonly variant: string
  /** The operations of csrc/core/ops.def; each call queues and returns. */
  readonly ops: Ops
  /** @internal */
  readonly queue: Queue
  /** @internal */
  readonly protocol: NativeAddon['protocol']
  readonly #native: NativeDevice
  readonly #requests = new Map<number, Request>()
  #lastRequest = 0
  #lastStaged = 0
  #lastProgram = 0
  #lastFile = 0
  #recording = false

  private constructor(name: string, opened: { resolve(): void; reject(error: Error): void }) {
    const native = loadNative()
    checkNames(native)
    this.name = name
    this.protocol = native.protocol
    this.#requests.set(0, { ...opened, destination: null })
    this.queue = new Queue(native.protocol, (control, page) => {
      const onComplete = this.#complete.bind(this)
      try {
        return native.openDevice(name, pluginFolder(name.split(':')[0]!), control, page, onComplete)
      } catch (error) {
        throw unavailable(name, (error as Error).message)
      }
    })
    this.#native = this.queue.native
    this.variant = this.#native.variant
    this.ops = buildOps(native.ops, native.protocol.firstOp, this.queue)
  }

  /**
   * The device of that name: 'cpu', 'cuda', 'cuda:1', or 'auto', a usable GPU, else the CPU. One per name and environment.
   * @throws QuantuneError ERR_DEVICE with the reason when it cannot be used
   */
  static open(name = 'auto'): Promise<Device> {
    if (name === 'auto') return Device.open('cuda').catch(fallBackToCpu)
    const known = devices.get(name)
    if (known) return known
    const opening = Device.#open(name)
    devices.set(name, opening)
    opening.catch(() => devices.delete(name))
    return opening
  }

  static async #open(name: string): Promise<Device> {
    loadNative().setThreads(env.numThreads)
    const refusal = await whyRefused(name)
    if (refusal) throw unavailable(name, refusal)
    let device: Device | undefined
    await new Promise<void>((resolve, reject) => {
      const refuse = (error: Error) => reject(unavailable(name, error.message))
      device = new Device(name, { resolve, reject: refuse })
    })
    return device!
  }

  /** The length of the int32 plan that `attention_plan` fills for so many queries and keys. */
  attentionPlanSize(queries: number, keys: number): number {
    return this.#native.attentionPlanSize(queries, keys)
  }

  /** Resolves when everything queued so far has completed. Await one of two steps ago to keep at most two in flight. */
  settled(): Promise<void> {
    return this.#request(null, 0, (request) => this.queue.write(this.protocol.event, request))
  }

  /** Counted as the queue runs: await {@link settled} first for exact figures. */
  memoryUsage(): MemoryUsage {
    const values = this.#native.memory()
    const n = purposes.length
    const table = (from: number, total: number) => {
      const entries = purposes.map((purpose, i) => [purpose, values[from + i]!])
      return { ...Object.fromEntries(entries), total } as MemoryUsage['current']
    }
    return { current: table(0, values[2 * n]!), peak: table(n, values[2 * n + 1]!), cached: values[2 * n + 2]! }
  }

  resetPeak(): void {
    this.#native.resetPeak()
  }

  /**
   * Captures the operations that `fn` queues without running them. Their tensors keep fixed addresses: those created inside live
   * as long as the program, and constants made by `Tensor.from` are written once, now. `fn` must not read.
   */
  record(fn: () => void): Program {
    if (this.#recording) throw invalidArgument('record: another recording is in progress')
    const program = new Program(this, ++this.#lastProgram)
    this.queue.write(this.protocol.recordBegin, program.id)
    this.#recording = true
    try {
      fn()
    } catch (error) {
      this.#endRecording(program)
      program.dispose()
      throw error
    }
    this.#endRecording(program)
    return program
  }

  #endRecording(program: Program): void {
    this.#recording = false
    this.queue.write(this.protocol.recordEnd, program.id)
  }

  /** Queues the operations of `program` once more. */
  replay(program: Program): void {
    if (program.device !== this) throw invalidArgument('replay: the program was recorded on another device')
    if (program.disposed) throw new QuantuneError('ERR_DISPOSED', 'replay: the program is disposed')
    if (this.#recording) throw invalidArgument('replay: not possible while recording')
    this.queue.write(this.protocol.replay, program.id)
  }

  /**
   * Maps a file, for {@link Tensor.fromFile}.
   * @throws QuantuneError ERR_IO with the system's reason
   */
  openFile(path: string): MappedFile {
    const id = ++this.#lastFile
    try {
      return new MappedFile(this, id, path, this.#native.openFile(id, path))
    } catch (error) {
      throw new QuantuneError('ERR_IO', `${path} cannot be read: ${(error as Error).message}`, {
        cause: error,
        details: { path },
      })
    }
  }

  /** @internal Queues a copy of `array` into the tensor `handle`. */
  writeStaged(handle: number, array: NodeJS.TypedArray, dtype: number): void {
    this.#lastStaged = (this.#lastStaged % 0x7ffffffe) + 1
    this.#native.stage(this.#lastStaged, array, dtype)
    const at = this.queue.reserve(this.protocol.write, 3)
    this.queue.words[at + 1] = handle
    this.queue.words[at + 2] = this.#lastStaged
    this.queue.commit()
  }

  /** @internal Resolves when the tensor's data lies in `destination`. */
  readInto(handle: number, destination: NodeJS.TypedArray, dtype: number): Promise<void> {
    if (this.#recording) return Promise.reject(invalidArgument('data cannot be read while recording'))
    return this.#request(destination, dtype, (request) => this.queue.write(this.protocol.read, handle, request))
  }

  #request(destination: NodeJS.TypedArray | null, dtype: number, queue: (request: number) => void): Promise<void> {
    this.#lastRequest = (this.#lastRequest % 0x7ffffffe) + 1
    const request = this.#lastRequest
    return new Promise((resolve, reject) => {
      this.#requests.set(request, { resolve, reject, destination })
      this.#native.expect(request, destination, dtype)
      queue(request)
      this.queue.publish()
    })
  }

  #complete(id: number, status?: number, message?: string, op?: string, site?: number): void {
    const request = this.#requests.get(id)
    this.#requests.delete(id)
    if (status === undefined) request?.resolve()
    else request?.reject(this.#failure(status, message!, op!, site!))
  }

  /** The error of a failed operation, with the stack of the public call that queued it. */
  #failure(status: number, message: string, op: string, siteId: number): QuantuneError {
    const site = findSite(siteId)
    const details: Record<string, unknown> = { device: this.name }
    if (op) details.op = op
    if (site) details.call = site.name
    if (status === OUT_OF_MEMORY) details.memory = this.memoryUsage()
    const where = site ? ` (queued by ${site.name})` : ''
    const table = status === OUT_OF_MEMORY ? `\n${memoryTable(this.memoryUsage())}` : ''
    const error = new QuantuneError(codeOfStatus[status] ?? 'ERR_DEVICE', `${op ? `${op}: ` : ''}${message}${where}${table}`, {
      details,
    })
    if (site?.trace.stack)
      error.stack = `${error.name}: ${error.message}${site.trace.stack.slice(site.trace.stack.indexOf('\n    at '))}`
    return error
  }
}

/** Recorded operations. They keep their tensors alive until the program is disposed. */
export class Program {
  readonly device: Device
  readonly id: number
  #disposed = false

  /** @internal */
  constructor(device: Device, id: number) {
    this.device = device
    this.id = id
  }

  get disposed(): boolean {
    return this.#disposed
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.device.queue.write(this.device.protocol.releaseProgram, this.id)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** A file mapped for reading. The map lives until it is closed and the copies queued before have been made. */
export class MappedFile {
  readonly path: string
  /** Bytes. */
  readonly size: number
  readonly #device: Device
  readonly #id: number
  #closed = false

  /** @internal */
  constructor(device: Device, id: number, path: string, size: number) {
    this.#device = device
    this.#id = id
    this.path = path
    this.size = size
  }

  /** @internal */
  idOn(device: Device): number {
    if (this.#closed) throw new QuantuneError('ERR_DISPOSED', `${this.path} is closed`)
    if (device !== this.#device) throw invalidArgument(`${this.path} was opened on another device`)
    return this.#id
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#device.queue.write(this.#device.protocol.forgetFile, this.#id)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

function unavailable(name: string, reason: string): QuantuneError {
  return new QuantuneError('ERR_DEVICE', `the device '${name}' cannot be used: ${reason}`, {
    details: { device: name, reason },
  })
}

function fallBackToCpu(reason: unknown): Promise<Device> {
  log('debug', () => `auto takes the CPU: ${(reason as Error).message}`)
  return Device.open('cpu')
}

function memoryTable({ current, peak }: MemoryUsage): string {
  const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`
  const rows = [...purposes, 'total' as const].map(
    (key) => `  ${key}: ${megabytes(current[key])} (peak ${megabytes(peak[key])})`,
  )
  return `in use now:\n${rows.join('\n')}`
}

function checkNames(native: NativeAddon): void {
  const same = (a: readonly string[], b: readonly string[]) => a.length === b.length && a.every((name, i) => name === b[i])
  if (!same(native.dtypes, dtypes) || !same(native.purposes, purposes)) {
    throw new QuantuneError(
      'ERR_NO_BINARY',
      'the native addon is stale: its dtypes differ; rebuild it with npm run build:native',
    )
  }
}
