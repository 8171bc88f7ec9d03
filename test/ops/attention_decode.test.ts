import t, { type Test } from 'tap'
import { openHarness } from './harness.js'

const h = await openHarness()
const int32 = (values: ArrayLike<number>, shape?: number[]) => h.operand(values, shape, 'int32')

interface Case {
  heads: number
  kvHeads: number
  size: number
  blockSize: number
  lengths: number[]
  /** Generated tokens: of each sequence, or of all. */
  steps: number | number[]
  /** How many of its first blocks each sequence has in common with the first one. */
  shared?: number
}

/** A shuffled cache, beam slots and the tables that lead to them, beside the keys and values of each sequence in order. */
function build(c: Case, dtype: 'float32' | 'bfloat16') {
  const batch = c.lengths.length
  const maxBlocks = Math.max(1, ...c.lengths.map((n) => Math.ceil(n / c.blockSize)))
  const blocks = batch * maxBlocks + 3
  const stepsOf = c.lengths.map((_, b) => [c.steps].flat()[b % [c.steps].flat().length]!)
  const [maxSteps, slots] = [Math.max(...stepsOf) + 2, batch + 1]
  const normal = (shape: number[]) => h.random.normal(shape, { dtype })
  const caches = [0, 1].map(() => normal([blocks, c.blockSize, c.kvHeads, c.size]))
  const generated = [0, 1].map(() => normal([maxSteps, slots, c.kvHeads, c.size]))
  const free = Array.from({ length: blocks }, (_, i) => i).sort(() => h.random.next() - 0.5)
  const table = Array.from({ length: batch * maxBlocks }, (_, i) =>
    (i % maxBlocks) * c.blockSize < c.lengths[Math.floor(i / maxBlocks)]! ? free[i]! : -1,
  ) // places past a prompt are never looked at
  for (let b = 1; b < batch; b++) table.copyWithin(b * maxBlocks, 0, Math.min(c.shared ?? 0, maxBlocks))
  const ancestors = h.random.integers([batch, maxSteps], 0, slots)
  const row = c.kvHeads * c.size
  const sequence = (b: number, which: number): Float64Array[] => {
    const prompt = Array.from({ length: c.lengths[b]! }, (_, i) => {
      const at = table[b * maxBlocks + Math.floor(i / c.blockSize)]! * c.blockSize + (i % c.blockSize)
      return caches[which]!.values.subarray(at * row, (at + 1) * row)
    })
    const rest = Array.from({ length: stepsOf[b]! }, (_, s) => {
      const at = s * slots + ancestors.values[b * maxSteps + s]!
      return generated[which]!.values.subarray(at * row, (at + 1) * row)
    })
    return [...prompt, ...rest]
  }
  return {
    q: normal([batch, c.heads, c.size]),
    caches,
    generated,
    table: int32(table, [batch, maxBlocks]),
    lengths: int32(c.lengths),
    ancestors,
    steps: int32([c.steps].flat()),
    sequence,
  }
}

function decode(built: ReturnType<typeof build>, scale: number) {
  const o = h.garbage(built.q.shape, built.q.tensor.dtype)
  const [k, v] = built.caches.map((x) => x.tensor)
  const [kSteps, vSteps] = built.generated.map((x) => x.tensor)
  const tables = [built.table, built.lengths].map((x) => x.tensor)
  h.ops.attention_decode(
    o,
    built.q.tensor,
    k!,
    v!,
    tables[0]!,
    tables[1]!,
    kSteps!,
    vSteps!,
    built.ancestors.tensor,
    built.steps.tensor,
    scale,
  )
  return o
}

const cases: Case[] = [
  { heads: 1, kvHeads: 1, size: 3, blockSize: 4, lengths: [1], steps: 0 },
  { heads: 9, kvHeads: 3, size: 64, blockSize: 16, lengths: [700, 3, 40], steps: 5 },
  { heads: 4, kvHeads: 2, size: 20, blockSize: 7, lengths: [0, 13, 255, 256, 257], steps: 33 },
  { heads: 2, kvHeads: 2, size: 80, blockSize: 32, lengths: [100], steps: 1 },
  { heads: 3, kvHeads: 1, size: 128, blockSize: 1, lengths: [31, 32], steps: 0 },
  { heads: 9, kvHeads: 3, size: 64, blockSize: 16, lengths: new Array(5).fill(600), steps: 3, shared: 33 }, // beams that diverge
  { heads: 4, kvHeads: 1, size: 20, blockSize: 10, lengths: [300, 300, 300, 290, 300, 70], steps: 0, shared: 30 },
  { heads: 6, kvHeads: 2, size: 16, blockSize: 1, lengths: [40, 40, 7, 0], steps: [0, 3, 300, 17], shared: 20 },
  { heads: 6, kvHeads: 1, size: 8, blockSize: 4, lengths: new Array(40).fill(9), steps: 2, shared: 3 }, // more than one task's rows
]

for (const dtype of ['float32', 'bfloat16'] as const) {
  for (const c of cases) {
    t.test(`attention_decode ${dtype} ${JSON.stringify(c)}`, async (t) => {
      const built = build(c, dtype)
      const scale = 1 / Math.sqrt(c.size)
      const u = dtype === 'bfloat16' ? 2 ** -8 : 0 // probabilities may be rounded before they are multiplied, and o is
      const bounds: number[] = []
      const expected = c.lengths.flatMap((_, b) => {
        const [keys, values] = [built.sequence(b, 0), built.sequence(b, 1)]
        return Array.from({ length: c.heads }, (_, head) => {
          const kv = Math.floor(head / (c.heads / c.kvHeads)) * c.size
          const query = built.q.values.subarray((b * c.heads + head) * c.size, (b * c.heads + head + 1) * c.size)
          const scores = keys.map((k) => scale * query.reduce((sum, x, d) => sum + x * k[kv + d]!, 0))
          const highest = Math.max(...scores)
          const total = scores.reduce((sum, x) => sum + Math.exp(x - highest), 0)
          const p = scores.map((x) => Math.exp(x - highest) / total)
          return Array.from({ length: c.size }, (_, d) => {
            const parts = values.map((v, n) => p[n]! * v[kv + d]!)
            const o = parts.reduce((sum, x) => sum + x, 0)
            bounds.push(u * (Math.abs(o) + parts.reduce((sum, x) => sum + Math.abs(x), 0)))
            return o
          })
        }).flat()
      })
      const o = decode(built, scale)
      const actual = await h.read(o)
      const wrong = actual.findIndex(
        (x, i) => !(Math.abs(x - expected[i]!) <= 1.01 * bounds[i]! + 2e-6 * (1 + Math.abs(expected[i]!))),
      )
      t.equal(wrong, -1, `${actual[wrong]} instead of ${expected[wrong]}`)
    })
  }
}

const batches: [Case, 'float32' | 'bfloat16'][] = [
  [{ heads: 6, kvHeads: 2, size: 32, blockSize: 8, lengths: [600, 30, 300], steps: 9 }, 'float32'],
  [
    { heads: 4, kvHeads: 1, size: 32, blockSize: 8, lengths: [...new Array(11).fill(150), 90], steps: 3, shared: 12 },
    'bfloat16',
  ],
]
t.test('a sequence alone and in a batch: the same bits', async (t) => {
  for (const [c, dtype] of batches) await aloneAndTogether(t, c, dtype)
})

async function aloneAndTogether(t: Test, c: Case, dtype: 'float32' | 'bfloat16') {
  const built = build(c, dtype)
  const whole = await h.read(decode(built, 0.2))
  const width = c.heads * c.size
  for (const b of c.lengths.keys()) {
    const part = (x: (typeof built)['q']) => {
      const columns = x.values.length / c.lengths.length
      const shape = [1, ...x.shape.slice(1)]
      return h.operand(x.values.subarray(b * columns, (b + 1) * columns), shape, x.tensor.dtype)
    }
    const alone = {
      ...built,
      q: part(built.q),
      table: part(built.table),
      lengths: part(built.lengths),
      ancestors: part(built.ancestors),
    }
    await h.equal(t, decode(alone, 0.2), whole.subarray(b * width, (b + 1) * width), `sequence ${b} of ${c.lengths.length}`)
  }
}

for (const dtype of ['float32', 'bfloat16'] as const) {
  for (const size of [5, 8])
    t.test(`kv_write ${dtype}, heads of ${size}`, async (t) => {
      const [kCache, vCache] = [0, 1].map(() => h.random.normal([3, 4, 2, size], { dtype }))
      const [k, v] = [0, 1].map(() => h.random.normal([5, 2, size], { dtype }))
      const slots = [11, -1, 0, 6, -1]
      h.ops.kv_write(kCache!.tensor, vCache!.tensor, k!.tensor, v!.tensor, int32(slots).tensor)
      for (const [cache, x] of [
        [kCache!, k!],
        [vCache!, v!],
      ] as const) {
        const expected = Float64Array.from(cache.values)
        slots.forEach((slot, i) => {
          if (slot >= 0) expected.set(x.values.subarray(i * 2 * size, (i + 1) * 2 * size), slot * 2 * size)
        })
        await h.equal(t, cache.tensor, expected)
      }
      for (const slot of [-2, 12]) {
        const [a, b] = [h.zeros([3, 4, 2, size], dtype), h.zeros([3, 4, 2, size], dtype)]
        const bad = int32([slot, 0, 1, 2, 3]).tensor
        await h.rejects(t, a, () => h.ops.kv_write(a, b, k!.tensor, v!.tensor, bad), new RegExp(`slots\\[0\\] is ${slot}`))
      }
    })
}

t.test('refused', async (t) => {
  const c: Case = { heads: 2, kvHeads: 1, size: 4, blockSize: 4, lengths: [6, 2], steps: 1 }
  const refused = async (change: Partial<ReturnType<typeof build>>, pattern: RegExp) =>
    h.rejects(t, decode({ ...build(c, 'float32'), ...change }, 1), () => {}, pattern)
  await refused({ lengths: int32([9, 2]) }, /lengths\[0\] is 9/)
  await refused({ lengths: int32([-1, 2]) }, /lengths\[0\] is -1/)
  await refused({ table: int32([0, 7, 0, 0], [2, 2]) }, /block_table\[0, 1\] is 7/)
  await refused({ table: int32([0, 1, -1, 0], [2, 2]) }, /block_table\[1, 0\] is -1/)
  await refused({ steps: int32([4]) }, /steps\[0\] is 4/)
  await refused({ steps: int32([1, 4]) }, /steps\[1\] is 4/)
  await refused({ steps: int32([1, 1, 1]) }, /steps/)
  await refused({ ancestors: int32([0, 0, 0, 3, 0, 0], [2, 3]) }, /ancestors\[1, 0\] is 3/)
})
