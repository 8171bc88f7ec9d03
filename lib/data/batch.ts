import { invalidArgument } from '../errors.js'
import { assertKnownKeys } from '../options.js'
import type { BatchData } from './batch-data.js'
import { buildPrefixTree } from './prefix-tree.js'

/** The label of a position without loss. */
export const IGNORE_LABEL = -100

/** One sample: token ids and, per token, what the position before it should have predicted (-100: no loss). */
export interface Sequence {
  inputIds: ArrayLike<number>
  /** Same length as `inputIds`; default: no loss anywhere. The first label has no position before it and is ignored. */
  labels?: ArrayLike<number>
  /** 0 for a token that no other token may attend to; same length as `inputIds`. Default: all 1. */
  attentionMask?: ArrayLike<number>
}

export interface PackOptions {
  /** Samples that begin with the same token ids share those tokens. Default: true. */
  sharePrefixes?: boolean
  /** Ids of tokens that no other token may attend to (reasoning tokens, if so wanted). */
  notAttended?: Iterable<number>
  /**
   * Leave out the tokens of a sample after the last one that predicts a label: they change neither loss nor gradient. Then
   * `sampleRows` has no rows for them. Default: false.
   */
  trimUnused?: boolean
}

export interface PaddedBatch {
  /** [samples][length] */
  inputIds: readonly ArrayLike<number>[]
  /** [samples][length], 0 where there is padding; default: no padding. */
  attentionMask?: readonly ArrayLike<number>[]
  /** [samples][length], -100 where there is no loss; default: no loss anywhere. */
  labels?: readonly ArrayLike<number>[]
}

interface Checked {
  ids: Int32Array
  labels: Int32Array | null
  attended: Uint8Array | null
}

const LARGEST_ID = 2 ** 30 - 1

function toIds(values: ArrayLike<number>, name: string, lowest: number): Int32Array {
  const ids = new Int32Array(values.length)
  for (let i = 0; i < values.length; i++) {
    const value = values[i]
    if (!Number.isInteger(value) || ((value as number) < lowest && value !== IGNORE_LABEL) || (value as number) > LARGEST_ID) {
      throw invalidArgument(`${name}[${i}] must be a token id, got ${String(value)}`, { index: i, value })
    }
    ids[i] = value as number
  }
  return ids
}

function sameLength(values: ArrayLike<number>, length: number, name: string): void {
  if (values.length !== length) {
    throw invalidArgument(`${name} must have one entry per token: expected ${length}, got ${values.length}`)
  }
}

function check(sequence: Sequence, index: number): Checked {
  const name = `sequences[${index}]`
  if (typeof sequence !== 'object' || sequence === null || !isArrayLike(sequence.inputIds)) {
    throw invalidArgument(`${name}.inputIds must be an array of token ids`)
  }
  const { inputIds, labels, attentionMask } = sequence
  if (inputIds.length === 0) throw invalidArgument(`${name} has no tokens`)
  const ids = toIds(inputIds, `${name}.inputIds`, 0)
  const negative = ids.indexOf(IGNORE_LABEL)
  if (negative >= 0) throw invalidArgument(`${name}.inputIds[${negative}] must be a token id, got ${IGNORE_LABEL}`)
  if (labels) sameLength(labels, ids.length, `${name}.labels`)
  if (attentionMask) sameLength(attentionMask, ids.length, `${name}.attentionMask`)
  return {
    ids,
    labels: labels ? toIds(labels, `${name}.labels`, 0) : null,
    attended: attentionMask ? Uint8Array.from(attentionMask, (value) => (value ? 1 : 0)) : null,
  }
}

function isArrayLike(value: unknown): value is ArrayLike<number> {
  return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView))
}

/** Number of tokens up to the last one that predicts a label; at least one, as a batch without labels is legal. */
function usedLength({ ids, labels }: Checked): number {
  let last = labels ? labels.length - 1 : 0
  while (labels && last > 0 && labels[last] === IGNORE_LABEL) last--
  return Math.min(Math.max(last, 1), ids.length)
}

/** Loss pairs of all samples, ascending by row; pairs of one row in the order of the samples. */
function collectTargets(samples: readonly Checked[], sampleRows: readonly Int32Array[], length: number) {
  const perRow = new Int32Array(length + 1)
  const each = (use: (row: number, id: number) => void) => {
    for (const [sample, { labels }] of samples.entries()) {
      if (!labels) continue
      for (let t = 1; t < labels.length; t++) if (labels[t] !== IGNORE_LABEL) use(sampleRows[sample]![t - 1]!, labels[t]!)
    }
  }
  each((row) => perRow[row + 1]!++)
  for (let row = 0; row < length; row++) perRow[row + 1]! += perRow[row]!
  const targetRows = new Int32Array(perRow[length]!)
  const targetIds = new Int32Array(perRow[length]!)
  each((row, id) => {
    const at = perRow[row]!++
    targetRows[at] = row
    targetIds[at] = id
  })
  return { targetRows, targetIds }
}

/** A batch: one token stream over a forest of segments, never padded. Make one with `Batch.pack` or `Batch.fromPadded`. */
export class Batch implements BatchData {
  readonly inputIds: Int32Array
  readonly positions: Int32Array
  readonly end: Int32Array
  readonly targetRows: Int32Array
  readonly targetIds: Int32Array
  readonly sampleRows: Int32Array[]

  constructor(data: BatchData) {
    this.inputIds = data.inputIds
    this.positions = data.positions
    this.end = data.end
    this.targetRows = data.targetRows
    this.targetIds = data.targetIds
    this.sampleRows = data.sampleRows
  }

  /** Tokens of the stream: what the model computes. */
  get numTokens(): number {
    return this.inputIds.length
  }

  /** Tokens of all samples laid side by side: what the model would compute without shared prefixes. */
  get numSampleTokens(): number {
    return this.sampleRows.reduce((sum, rows) => sum + rows.length, 0)
  }

  /** Labelled tokens; one that k samples share counts k times. */
  get numTargets(): number {
    return this.targetRows.length
  }

  get numSamples(): number {
    return this.sampleRows.length
  }

  /**
   * Packs samples into one stream. With `sharePrefixes` the gradient is exactly that of the separate samples (LoRA dropout, if any, is
   * drawn once for a shared token).
   * @throws ERR_INVALID_ARGUMENT for an empty batch, an empty sample, or arrays that do not fit each other
   */
  static pack(sequences: readonly Sequence[], options: PackOptions = {}): Batch {
    if (!Array.isArray(sequences) || sequences.length === 0) throw invalidArgument('a batch needs at least one sequence')
    assertKnownKeys(options, ['sharePrefixes', 'notAttended', 'trimUnused'], 'PackOptions')
    const { sharePrefixes = true, trimUnused = false } = options
    const notAttended = new Set(options.notAttended ?? [])
    const samples = sequences.map((sequence, index) => check(sequence, index))
    const keys = samples.map((sample) => {
      const length = trimUnused ? usedLength(sample) : sample.ids.length
      // Two tokens are the same only if others may attend to both or to neither: the lowest bit of the key.
      return Int32Array.from(sample.ids.subarray(0, length), (id, t) => {
        const attended = (sample.attended?.[t] ?? 1) === 1 && !notAttended.has(id)
        return id * 2 + (attended ? 1 : 0)
      })
    })
    const { length, sourceSample, sourceIndex, end, sampleRows } = buildPrefixTree(keys, sharePrefixes)
    const inputIds = new Int32Array(length)
    for (let row = 0; row < length; row++) {
      const key = keys[sourceSample[row]!]![sourceIndex[row]!]!
      inputIds[row] = key >> 1
      if ((key & 1) === 0) end[row] = row + 1
    }
    return new Batch({ inputIds, positions: sourceIndex, end, sampleRows, ...collectTargets(samples, sampleRows, length) })
  }

  /**
   * Packs a padded batch as other libraries make it: leading and trailing positions whose mask is 0 are dropped with their labels; a 0
   * between tokens is a token that no other may attend to.
   */
  static fromPadded(batch: PaddedBatch, options: Omit<PackOptions, 'trimUnused'> = {}): Batch {
    assertKnownKeys(batch, ['inputIds', 'attentionMask', 'labels'], 'PaddedBatch')
    const { inputIds, attentionMask, labels } = batch
    if (!Array.isArray(inputIds) || !inputIds.every(isArrayLike))
      throw invalidArgument('inputIds must be a list of lists of token ids')
    for (const [name, rows] of Object.entries({ attentionMask, labels })) {
      if (rows && rows.length !== inputIds.length) {
        throw invalidArgument(`${name} must have one row per sample: expected ${inputIds.length}, got ${rows.length}`)
      }
    }
    const sequences = inputIds.map((row, index): Sequence => {
      const mask = attentionMask?.[index]
      const label = labels?.[index]
      if (mask) sameLength(mask, row.length, `attentionMask[${index}]`)
      if (label) sameLength(label, row.length, `labels[${index}]`)
      let first = 0
      let last = row.length
      while (mask && first < last && !mask[first]) first++
      while (mask && last > first && !mask[last - 1]) last--
      const cut = (values: ArrayLike<number>) => Array.prototype.slice.call(values, first, last) as number[]
      return { inputIds: cut(row), labels: label && cut(label), attentionMask: mask && cut(mask) }
    })
    return Batch.pack(sequences, { sharePrefixes: false, ...options })
  }
}
