import type { BatchData } from './batch-data.js'

/** The part of a batch's stream that is computed. */
export type Stream = Pick<BatchData, 'inputIds' | 'positions' | 'end'>

/**
 * The rows of a stream that its outputs depend on: row j if one of `rows` lies in [j, end[j]), as only those may attend to it. What is
 * left out is what stands behind the last output of its branch, such as the final token of a sample, which predicts nothing.
 *
 * @param rows ascending
 * @returns the shorter stream, and where `rows` lie in it; the stream itself where every row is needed
 */
export function neededRows({ inputIds, positions, end }: Stream, rows: Int32Array): { stream: Stream; rows: Int32Array } {
  const length = inputIds.length
  // places[j]: the number of needed rows before row j.
  const places = new Int32Array(length + 1)
  let at = rows.length - 1
  let next = length
  for (let row = length - 1; row >= 0; row--) {
    if (at >= 0 && rows[at] === row) {
      next = row
      at--
    }
    places[row] = next < end[row]! ? 1 : 0
  }
  let count = 0
  const needed = new Int32Array(length)
  for (let row = 0; row <= length; row++) {
    const isNeeded = places[row] === 1 && row < length
    places[row] = count
    if (isNeeded) needed[count++] = row
  }
  if (count === length) return { stream: { inputIds, positions, end }, rows }
  const kept = needed.subarray(0, count)
  return {
    stream: {
      inputIds: kept.map((row) => inputIds[row]!),
      positions: kept.map((row) => positions[row]!),
      end: kept.map((row) => places[end[row]!]!),
    },
    rows: rows.map((row) => places[row]!),
  }
}
