import t from 'tap'
import { openHarness, tolerance } from './harness.js'

const h = await openHarness()

t.test('rope_table', async (t) => {
  const positions = [0, 1, 7, 4095, 3]
  const invFreq = h.operand([1, 0.1, 0.012345, 1e-4, 0.5])
  for (const scaling of [1, 1.25]) {
    const table = h.garbage([positions.length, 10])
    h.ops.rope_table(table, h.operand(positions, undefined, 'int32').tensor, invFreq.tensor, scaling)
    const expected = positions.flatMap((p) => {
      const angles = [...invFreq.values].map((f) => Math.fround(p * f)) // the angle is a float32 number, as in transformers
      return [...angles.map((a) => Math.cos(a) * scaling), ...angles.map((a) => Math.sin(a) * scaling)]
    })
    await h.close(t, table, expected, tolerance.float32)
  }
  const wrong = h.empty([2, 9])
  const two = h.operand([0, 1], undefined, 'int32')
  await h.rejects(t, wrong, () => h.ops.rope_table(wrong, two.tensor, invFreq.tensor, 1), /table/)
})

for (const dtype of ['float32', 'bfloat16'] as const) {
  t.test(`rope ${dtype}`, async (t) => {
    for (const [tokens, heads, size] of [
      [3, 2, 2],
      [5, 3, 20],
      [40, 9, 64],
    ] as const) {
      const half = size / 2
      const x = h.random.normal([tokens, heads, size], { dtype })
      const table = h.random.normal([tokens, size])
      for (const inverse of [0, 1]) {
        const expected = new Float64Array(x.values.length)
        for (let r = 0; r < tokens * heads; r++) {
          const token = Math.floor(r / heads)
          for (let i = 0; i < half; i++) {
            const cosine = table.values[token * size + i]!
            const sine = table.values[token * size + half + i]! * (inverse ? -1 : 1)
            const [a, b] = [x.values[r * size + i]!, x.values[r * size + half + i]!]
            expected[r * size + i] = a * cosine - b * sine
            expected[r * size + half + i] = b * cosine + a * sine
          }
        }
        const y = h.garbage([tokens, heads, size], dtype)
        h.ops.rope(y, x.tensor, table.tensor, inverse)
        await h.close(t, y, expected, tolerance[dtype], `[${tokens}, ${heads}, ${size}] inverse ${inverse}`)
        const inPlace = h.operand(x.values, x.shape, dtype)
        h.ops.rope(inPlace.tensor, inPlace.tensor, table.tensor, inverse)
        await h.equal(t, inPlace.tensor, await h.read(y), 'in place')
      }
    }
    const odd = h.empty([1, 1, 3], dtype)
    await h.rejects(t, odd, () => h.ops.rope(odd, h.zeros([1, 1, 3], dtype), h.zeros([1, 3]), 0), /odd/)
  })
}
