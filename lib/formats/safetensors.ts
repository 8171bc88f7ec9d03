/**
 * The safetensors format (https://huggingface.co/docs/safetensors): an 8-byte little-endian length, a JSON header, the tensors'
 * bytes. Files come from anywhere, so nothing in a header is believed before it has been compared with the rest of the file.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { corruptFile, ioError } from './errors.js'
import { duplicateKey, isJsonObject } from './json.js'

/** Bits per element of every type that the format defines; a file may hold types that quantune cannot compute with. */
const bitsOf = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  I64: 64,
  U64: 64,
  F64: 64,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  C64: 64,
} as const

export type SafetensorsDtype = keyof typeof bitsOf

export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  /** Position of the first byte in the file. */
  readonly byteOffset: number
  readonly byteLength: number
}

export interface SafetensorsHeader {
  /** In the order of their bytes. */
  readonly entries: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: Readonly<Record<string, string>>
}

/** As the reference implementation: a header of more than 100 MB is refused before it is read. */
const maxHeaderLength = 100_000_000
const prefixLength = 8

/** @returns bytes that `shape` takes, NaN when that is no whole number of bytes or too large to be exact. */
export function byteLengthOf(dtype: SafetensorsDtype, shape: readonly number[]): number {
  const bits = shape.reduce((product, n) => product * n, bitsOf[dtype])
  return Number.isSafeInteger(bits) && bits % 8 === 0 ? bits / 8 : Number.NaN
}

/** Reads and checks a header. @throws ERR_IO, ERR_CORRUPT_FILE naming the file and the tensor. */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsHeader> {
  const file = await open(path, 'r').catch((error) => {
    throw ioError('cannot read', path, error)
  })
  try {
    return await readHeader(file, path)
  } catch (error) {
    throw ioError('cannot read', path, error)
  } finally {
    await file.close()
  }
}

async function readHeader(file: FileHandle, path: string): Promise<SafetensorsHeader> {
  const { size } = await file.stat()
  if (size < prefixLength) throw corruptFile(path, `${size} bytes are too few for a safetensors file`)
  const prefix = await readFully(file, path, 0, prefixLength)
  const headerLength = new DataView(prefix.buffer).getBigUint64(0, true)
  if (headerLength > BigInt(maxHeaderLength) || headerLength > BigInt(size - prefixLength)) {
    throw corruptFile(path, describeHugeHeader(prefix, headerLength, size))
  }
  const bytes = await readFully(file, path, prefixLength, Number(headerLength))
  return parseSafetensorsHeader(path, bytes, size)
}

function describeHugeHeader(prefix: Uint8Array, headerLength: bigint, fileSize: number): string {
  // A zip archive or a pickle protocol byte: torch.save's two formats, often renamed.
  const pickle = (prefix[0] === 0x50 && prefix[1] === 0x4b) || (prefix[0] === 0x80 && prefix[1]! <= 5)
  if (Buffer.from(prefix).toString('latin1') === 'version ')
    return 'this is a Git LFS pointer, not the file it stands for; run git lfs pull'
  if (pickle) return 'this is a Python pickle or zip archive, not a safetensors file; quantune does not read pickles'
  return `the header claims ${headerLength} bytes, the file has ${fileSize} (truncated, or not a safetensors file)`
}

/**
 * Checks a header against the size of its file.
 * @param bytes the JSON text, without the length before it
 * @param fileSize bytes of the whole file
 */
export function parseSafetensorsHeader(path: string, bytes: Uint8Array, fileSize: number): SafetensorsHeader {
  const parsed = parseHeaderJson(path, bytes)
  const dataStart = prefixLength + bytes.length
  const found: SafetensorsEntry[] = []
  let metadata: Record<string, string> = {}
  for (const [name, value] of Object.entries(parsed)) {
    if (name === '__metadata__') metadata = checkMetadata(path, value)
    else found.push(checkEntry(path, name, value, dataStart))
  }
  found.sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength)
  checkCoverage(path, found, dataStart, fileSize)
  return { entries: new Map(found.map((entry) => [entry.name, entry])), metadata }
}

function parseHeaderJson(path: string, bytes: Uint8Array): Record<string, unknown> {
  let text: string
  let parsed: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    parsed = JSON.parse(text)
  } catch (error) {
    throw corruptFile(path, `the header is not valid JSON (${(error as Error).message})`)
  }
  if (!isJsonObject(parsed) || text[0] !== '{') throw corruptFile(path, 'the header is not a JSON object')
  const twice = duplicateKey(text)
  if (twice !== null) throw corruptFile(path, 'the header names this key twice', { tensor: twice })
  return parsed
}

function checkMetadata(path: string, value: unknown): Record<string, string> {
  if (value === null) return {}
  if (!isJsonObject(value) || Object.values(value).some((v) => typeof v !== 'string')) {
    throw corruptFile(path, '__metadata__ must map strings to strings')
  }
  return value as Record<string, string>
}

function checkEntry(path: string, tensor: string, value: unknown, dataStart: number): SafetensorsEntry {
  if (!isJsonObject(value)) throw corruptFile(path, 'its header entry is not an object', { tensor })
  const { dtype, shape, data_offsets: offsets } = value
  for (const key of Object.keys(value)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') {
      throw corruptFile(path, `its header entry has an unknown field "${key}"`, { tensor })
    }
  }
  if (typeof dtype !== 'string' || !Object.hasOwn(bitsOf, dtype)) {
    throw corruptFile(path, `unknown dtype ${JSON.stringify(dtype)}`, { tensor })
  }
  if (!isSizes(shape)) throw corruptFile(path, `its shape ${JSON.stringify(shape)} is no list of sizes`, { tensor })
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    throw corruptFile(path, `its data_offsets ${JSON.stringify(offsets)} are no range`, { tensor })
  }
  const byteLength = offsets[1]! - offsets[0]!
  const expected = byteLengthOf(dtype as SafetensorsDtype, shape)
  if (expected !== byteLength) {
    const needs = Number.isNaN(expected) ? 'no possible number of' : expected
    throw corruptFile(path, `${dtype} [${shape.join(', ')}] takes ${needs} bytes, data_offsets give ${byteLength}`, { tensor })
  }
  return { name: tensor, dtype: dtype as SafetensorsDtype, shape, byteOffset: dataStart + offsets[0]!, byteLength }
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0)
}

/** The format allows neither overlaps nor holes nor bytes after the last tensor: each could hide something from one reader. */
function checkCoverage(path: string, sorted: SafetensorsEntry[], dataStart: number, fileSize: number): void {
  let position = dataStart
  let previous = ''
  for (const { name: tensor, byteOffset, byteLength } of sorted) {
    if (byteOffset + byteLength > fileSize) {
      throw corruptFile(path, `ends at byte ${byteOffset + byteLength}, the file has ${fileSize} (truncated?)`, { tensor })
    }
    if (byteOffset < position) throw corruptFile(path, `overlaps tensor "${previous}"`, { tensor })
    if (byteOffset > position)
      throw corruptFile(path, `${byteOffset - position} bytes before it belong to no tensor`, { tensor })
    position = byteOffset + byteLength
    previous = tensor
  }
  if (position !== fileSize) throw corruptFile(path, `${fileSize - position} bytes at its end belong to no tensor`)
}

/** Reads exactly `length` bytes. @throws ERR_CORRUPT_FILE when the file has become shorter. */
export async function readFully(
  file: FileHandle,
  path: string,
  position: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length)
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, Math.min(length - done, 1 << 28), position + done)
    if (bytesRead === 0) throw corruptFile(path, `the file ended at byte ${position + done} while it was read`)
    done += bytesRead
  }
  return bytes
}
