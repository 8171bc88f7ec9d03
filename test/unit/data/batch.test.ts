import fc from 'fast-check'
import t from 'tap'
import { Batch, type Sequence } from '../../../lib/data/batch.js'

/** What each (sample, token) sees, written as the list of token ids and positions, and what it has to predict. */
function separately(sequences: readonly Sequence[], notAttended: ReadonlySet<number>) {
  return sequences.map(({ inputIds, labels }) =>
    Array.from(inputIds, (id, t) => {
      const seen: [number, number][] = []
      for (let j = 0; j <= t; j++) if (j === t || !notAttended.has(inputIds[j]!)) seen.push([inputIds[j]!, j])
      const target = t + 1 < inputIds.length ? (labels?.[t + 1] ?? -100) : -100
      return { id, seen, target }
    }),
  )
}

function seenBy(batch: Batch, row: number): [number, number][] {
  const seen: [number, number][] = []
  for (let j = 0; j <= row; j++) if (row < batch.end[j]!) seen.push([batch.inputIds[j]!, batch.positions[j]!])
  return seen
}

const sequence = fc
  .array(fc.record({ id: fc.integer({ min: 0, max: 2 }), labelled: fc.boolean() }), { minLength: 1, maxLength: 8 })
  .map((tokens): Sequence => ({ inputIds: tokens.map((x) => x.id), labels: tokens.map((x) => (x.labelled ? x.id : -100)) }))
const sequences = fc.array(sequence, { minLength: 1, maxLength: 7 })

t.test('a packed batch shows each token what it would see in its own sample', async () => {
  fc.assert(
    fc.property(sequences, fc.boolean(), fc.subarray([0, 1, 2]), (samples, sharePrefixes, ignored) => {
      const batch = Batch.pack(samples, { sharePrefixes, notAttended: ignored })
      const expected = separately(samples, new Set(ignored))
      for (const [s, tokens] of expected.entries()) {
        const rows = batch.sampleRows[s]!
        if (rows.length !== tokens.length) return false
        for (const [i, { id, seen }] of tokens.entries()) {
          if (batch.inputIds[rows[i]!] !== id || batch.positions[rows[i]!] !== i) return false
          if (JSON.stringify(seenBy(batch, rows[i]!)) !== JSON.stringify(seen)) return false
        }
      }
      return true
    }),
    { numRuns: 500 },
  )
})

t.test('its targets are those of all samples, sorted by row, shared ones counted per sample', async () => {
  fc.assert(
    fc.property(sequences, fc.boolean(), fc.boolean(), (samples, sharePrefixes, trimUnused) => {
      const batch = Batch.pack(samples, { sharePrefixes, trimUnused })
      const pairs: string[] = []
      for (const [s, tokens] of separately(samples, new Set()).entries()) {
        for (const [i, { target }] of tokens.entries()) if (target !== -100) pairs.push(`${batch.sampleRows[s]![i]} ${target}`)
      }
      const got = Array.from(batch.targetRows, (row, i) => `${row} ${batch.targetIds[i]}`)
      const ascending = batch.targetRows.every((row, i) => i === 0 || batch.targetRows[i - 1]! <= row)
      return ascending && JSON.stringify([...got].sort()) === JSON.stringify(pairs.sort())
    }),
    { numRuns: 500 },
  )
})

t.test('no two siblings begin with the same token: the tree is as small as it can be', async () => {
  fc.assert(
    fc.property(sequences, (samples) => {
      const prefixes = new Set<string>()
      for (const { inputIds } of samples)
        for (let n = 1; n <= inputIds.length; n++) prefixes.add(Array.from(inputIds).slice(0, n).join())
      return Batch.pack(samples).numTokens === prefixes.size
    }),
  )
})

t.test('a context shared by two questions', async (t) => {
  const labels = [-100, -100, -100, 4]
  const batch = Batch.pack([
    { inputIds: [7, 8, 1, 4], labels },
    { inputIds: [7, 8, 2, 5, 6], labels: [-100, -100, -100, 5, 6] },
    { inputIds: [7, 8, 1, 4], labels },
    { inputIds: [7, 8], labels: [-100, 8] },
  ])
  t.same([...batch.inputIds], [7, 8, 1, 4, 2, 5, 6])
  t.same([...batch.positions], [0, 1, 2, 3, 2, 3, 4])
  t.same([...batch.end], [7, 7, 4, 4, 7, 7, 7])
  t.same(
    batch.sampleRows.map((rows) => [...rows]),
    [
      [0, 1, 2, 3],
      [0, 1, 4, 5, 6],
      [0, 1, 2, 3],
      [0, 1],
    ],
  )
  t.same([...batch.targetRows], [0, 2, 2, 4, 5])
  t.same([...batch.targetIds], [8, 4, 4, 5, 6])
  t.match(batch, { numTokens: 7, numSampleTokens: 15, numTargets: 5, numSamples: 4 })
})

t.test('trimUnused leaves out what predicts nothing, and never a whole sample', async (t) => {
  const batch = Batch.pack(
    [
      { inputIds: [1, 2, 3, 4], labels: [-100, -100, 3, -100] },
      { inputIds: [5, 6], labels: [-100, -100] },
    ],
    { trimUnused: true },
  )
  t.same([...batch.inputIds], [1, 2, 5])
  t.same([...batch.targetRows], [1])
})

t.test('fromPadded drops padding on either side', async (t) => {
  const batch = Batch.fromPadded({
    inputIds: [
      [0, 0, 5, 6],
      [5, 9, 7, 0],
    ],
    attentionMask: [
      [0, 0, 1, 1],
      [1, 0, 1, 0],
    ],
    labels: [
      [1, 1, 5, 6],
      [5, -100, 7, 3],
    ],
  })
  t.same([...batch.inputIds], [5, 6, 5, 9, 7])
  t.same([...batch.positions], [0, 1, 0, 1, 2])
  t.same([...batch.end], [2, 2, 5, 4, 5])
  t.same([...batch.targetRows], [0, 3])
  t.same([...batch.targetIds], [6, 7])
})

t.test('refuses what is no batch', async (t) => {
  const refused = { name: 'QuantuneError', code: 'ERR_INVALID_ARGUMENT' }
  t.throws(() => Batch.pack([]), refused)
  t.throws(() => Batch.pack([{ inputIds: [] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: [1.5] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: [-1] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: [-100] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: [2 ** 31] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: [1, 2], labels: [1] }]), { ...refused, message: /expected 2, got 1/ })
  t.throws(() => Batch.pack([{ inputIds: [1, 2], labels: [1, -1] }]), refused)
  t.throws(() => Batch.pack([{ inputIds: 'ab' as unknown as number[] }]), refused)
  t.throws(() => Batch.fromPadded({ inputIds: [[1]], labels: [] }), refused)
  t.throws(() => Batch.fromPadded({ inputIds: [[1, 2]], attentionMask: [[1]] }), refused)
  t.throws(() => Batch.fromPadded({ inputIds: [[1]], attentionMask: [[0]] }), refused)
})
