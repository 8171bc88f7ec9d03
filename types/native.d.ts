/** The addon's surface, written by hand; test/unit/native compares it with what the addon exports. */

export type OperandKind = 'out' | 'inout' | 'in' | 'out?' | 'inout?' | 'in?' | 'out[]' | 'inout[]' | 'in[]' | 'f64' | 'i64'

export interface OpDescription {
  name: string
  operands: { name: string; kind: OperandKind }[]
}

/** Opcodes and layout of the queue's records: csrc/core/protocol.h. */
export interface Protocol {
  pageWords: number
  opcodeBits: number
  firstOp: number
  slotBits: number
  controlTail: number
  controlHead: number
  controlSleeping: number
  controlWords: number
  nextPage: number
  create: number
  view: number
  release: number
  write: number
  writeFile: number
  read: number
  event: number
  site: number
  recordBegin: number
  recordEnd: number
  replay: number
  releaseProgram: number
  forgetFile: number
}

export interface NativeDevice {
  /** 'generic' | 'avx2' | 'avx512' … */
  variant: string
  /** Makes a further page of records known; the device keeps it alive. */
  addPage(id: number, words: Int32Array): void
  /** Needed when `control[controlSleeping]` is 1 after the tail was published. */
  wake(): void
  /** Copies `data` for a later write record; `dtype` is what its elements are. */
  stage(id: number, data: NodeJS.TypedArray, dtype: number): void
  /**
   * Announces a read or event record; its completion calls `onComplete`. The data is written straight into `destination`,
   * which the caller keeps alive until then; null for an event.
   */
  expect(request: number, destination: NodeJS.TypedArray | null, dtype: number): void
  /** Maps a file for later writeFile records; returns its size in bytes. Throws with the system's reason. */
  openFile(id: number, path: string): number
  attentionPlanSize(queries: number, keys: number): number
  /** Bytes by purpose, peaks by purpose, total, peak total, cached. */
  memory(): number[]
  resetPeak(): void
}

/** `status` and what follows are absent when the request succeeded. Request 0 is the opening of the device. */
export type OnComplete = (request: number, status?: number, message?: string, op?: string, site?: number) => void

export interface NativeAddon {
  abiVersion: number
  ops: OpDescription[]
  protocol: Protocol
  /** Names in the order of their numbers. */
  dtypes: string[]
  purposes: string[]
  /** Throws with the reason when there is no such backend. */
  openDevice(
    name: string,
    pluginFolder: string,
    control: Int32Array,
    firstPage: Int32Array,
    onComplete: OnComplete,
  ): NativeDevice
  /**
   * What a plugin says about its driver and its devices (JSON: {@link PluginDescription} in lib/tensor/probe.ts). Throws with the
   * reason when it cannot be opened. A broken driver may crash the process that asks.
   */
  describePlugin(name: string, pluginFolder: string): string
  /** The cores that the process may use, the container's limit included. */
  usableCores(): number
  /** Threads for CPU kernels, the queue's own included; takes effect between operations. */
  setThreads(threads: number): void
}
