import { open } from 'node:fs/promises'
import { readFully, readSafetensorsHeader } from '../../lib/formats/safetensors.js'

export interface ReferenceTensor {
  shape: readonly number[]
  /** 64-bit integers arrive as int32 */
  values: Float32Array | Int32Array | Uint8Array
}

export type ReferenceTensors = ReadonlyMap<string, ReferenceTensor>

/** Reads a whole safetensors file into arrays, with nothing of the native core. */
export async function readReference(path: string): Promise<ReferenceTensors> {
  const { entries } = await readSafetensorsHeader(path)
  const file = await open(path, 'r')
  try {
    const tensors = new Map<string, ReferenceTensor>()
    for (const { name, dtype, shape, byteOffset, byteLength } of entries.values()) {
      const { buffer } = await readFully(file, path, byteOffset, byteLength)
      tensors.set(name, { shape, values: decode(dtype, buffer) })
    }
    return tensors
  } finally {
    await file.close()
  }
}

function decode(dtype: string, buffer: ArrayBuffer): ReferenceTensor['values'] {
  if (dtype === 'F32') return new Float32Array(buffer)
  if (dtype === 'U8') return new Uint8Array(buffer)
  if (dtype === 'I64') return Int32Array.from(new BigInt64Array(buffer), Number)
  if (dtype === 'I32') return new Int32Array(buffer)
  throw new Error(`reference tensors of type ${dtype} are not expected`)
}

/** A two-dimensional tensor as rows. */
export function rowsOf({ shape, values }: ReferenceTensor): number[][] {
  const width = shape[1]!
  return Array.from({ length: shape[0]! }, (_, row) => Array.from(values.subarray(row * width, (row + 1) * width)))
}
