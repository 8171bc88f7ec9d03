import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Batch } from '../../../lib/data/batch.js'
import { elementsOf } from '../../../lib/formats/dtypes.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { readTensorBytes } from '../../../lib/formats/weight-files.js'
import type { Model } from '../../../lib/model/model.js'

export const goldens = fileURLToPath(new URL('../../fixtures/goldens/', import.meta.url))
export const golden = (path: string) => join(goldens, path)

export interface Array2 {
  shape: readonly number[]
  values: Float32Array
  ids: number[][]
}

/** Reads a tensor of a golden file: floats as `values`, integers as rows of `ids`. */
export async function readGolden(path: string, name: string): Promise<Array2> {
  const file = golden(path)
  const { entries } = await readSafetensorsHeader(file)
  const entry = entries.get(name)
  if (!entry) throw new Error(`${path} has no ${name}`)
  const elements = elementsOf(entry.dtype, await readTensorBytes({ ...entry, path: file }))!
  if (elements instanceof Float32Array) return { shape: entry.shape, values: elements, ids: [] }
  const width = entry.shape.at(-1)!
  const flat = Array.from(elements as BigInt64Array, Number)
  const ids = Array.from({ length: flat.length / width }, (_, row) => flat.slice(row * width, (row + 1) * width))
  return { shape: entry.shape, values: new Float32Array(0), ids }
}

/** Logits of every row of unpadded sequences, float32 [sequences * length, vocabulary]. */
export async function logitsOf(model: Model, inputIds: number[][], adapter?: string | null): Promise<Float32Array> {
  const result = model.forward(Batch.fromPadded({ inputIds }), { adapter, outputRows: 'all' })
  const logits = result.logits()
  result.dispose()
  const data = (await logits.data()) as Float32Array
  logits.dispose()
  return data
}

/** The largest |a - b| / max(1, |b|). */
export function deviation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY
  let largest = 0
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!) / Math.max(1, Math.abs(b[i]!))
    if (!(difference <= largest)) largest = difference
  }
  return largest
}
