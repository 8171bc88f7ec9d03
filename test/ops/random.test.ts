import t from 'tap'
import { openHarness } from './harness.js'

const h = await openHarness()

/** Philox 4x32-10 as Salmon et al. (2011) define it; the test vectors are Random123's. */
function philox(counter: number[], key: number[]): number[] {
  let [a, b, c, d] = counter as [number, number, number, number]
  let [k, l] = key as [number, number]
  for (let round = 0; round < 10; round++) {
    const p = BigInt(a >>> 0) * 0xd2511f53n
    const q = BigInt(c >>> 0) * 0xcd9e8d57n
    const next = [Number(q >> 32n) ^ b ^ k, Number(q & 0xffffffffn), Number(p >> 32n) ^ d ^ l, Number(p & 0xffffffffn)]
    ;[a, b, c, d] = next.map((x) => x >>> 0) as [number, number, number, number]
    k = (k + 0x9e3779b9) >>> 0
    l = (l + 0xbb67ae85) >>> 0
  }
  return [a, b, c, d]
}

function moments(values: Float64Array) {
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length
  return { mean, variance }
}

t.test('the reference generator is Random123s', async (t) => {
  t.strictSame(philox([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
})

t.test('random_uniform is Philox of its place', async (t) => {
  const out = h.garbage([10_001])
  const seed = 2 ** 40 + 77
  h.ops.random_uniform(out, seed, 5, -1, 3)
  const values = await h.read(out)
  for (const i of [0, 1, 6, 63, 64, 4096, 10_000]) {
    const words = philox([16 * Math.floor(i / 64) + (i % 16), 5, 0, 0x80000000], [seed >>> 0, 2 ** 8])
    t.ok(Math.abs(values[i]! - (-1 + 4 * ((words[Math.floor(i / 16) % 4]! >>> 8) / 2 ** 24))) < 1e-6, `element ${i}`)
  }
  t.ok(values.every((x) => x >= -1 && x <= 3))
  const { mean, variance } = moments(values)
  t.ok(Math.abs(mean - 1) < 0.05 && Math.abs(variance - 16 / 12) < 0.05, `mean ${mean}, variance ${variance}`)

  const longer = h.garbage([20_000])
  h.ops.random_uniform(longer, seed, 5, -1, 3)
  t.strictSame((await h.read(longer)).subarray(0, 10_001), values, 'a place does not depend on the size')
  h.ops.random_uniform(longer, seed, 6, -1, 3)
  t.not((await h.read(longer))[0], values[0], 'sites differ')
})

t.test('random_normal', async (t) => {
  for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
    const out = h.garbage([40_001], dtype)
    h.ops.random_normal(out, 3, 1, 0.5, 2)
    const values = await h.read(out)
    const { mean, variance } = moments(values)
    const beyond = values.filter((x) => Math.abs(x - 0.5) > 4).length / values.length
    t.ok(Math.abs(mean - 0.5) < 0.04 && Math.abs(variance - 4) < 0.12, `${dtype}: mean ${mean}, variance ${variance}`)
    t.ok(Math.abs(beyond - 0.0455) < 0.005, `${dtype}: ${beyond} beyond two deviations`)
  }
})

for (const dtype of ['float32', 'bfloat16'] as const) {
  t.test(`dropout ${dtype}`, async (t) => {
    const size = 20_011
    const x = h.random.normal([size], { dtype, mean: 3 })
    const rng = h.operand([1, 2, 3, 4], undefined, 'int32')
    const y = h.garbage([size], dtype)
    h.ops.dropout(y, x.tensor, rng.tensor, 9, 0.25)
    const values = await h.read(y)
    const kept = values.filter((v) => v !== 0).length / size
    t.ok(Math.abs(kept - 0.75) < 0.015, `${kept} kept`)
    const slack = dtype === 'float32' ? 1e-6 : 1e-2
    t.ok(
      values.every((v, i) => v === 0 || Math.abs(v - x.values[i]! / 0.75) <= slack * Math.abs(v)),
      'kept values are scaled',
    )

    const gradient = h.garbage([size], dtype)
    h.ops.dropout(gradient, h.operand(new Array(size).fill(1), undefined, dtype).tensor, rng.tensor, 9, 0.25)
    const mask = await h.read(gradient)
    t.ok(
      values.every((v, i) => (v === 0) === (mask[i] === 0)),
      'the same call is the backward',
    )

    const others: [string, number[], number][] = [
      ['site', [1, 2, 3, 4], 10],
      ['seed', [2, 2, 3, 4], 9],
      ['step', [1, 2, 4, 4], 9],
      ['micro-batch', [1, 2, 3, 5], 9],
    ]
    for (const [name, numbers, site] of others) {
      h.ops.dropout(y, x.tensor, h.operand(numbers, undefined, 'int32').tensor, site, 0.25)
      const other = await h.read(y)
      const agree = other.filter((v, i) => (v === 0) === (values[i] === 0)).length / size
      t.ok(Math.abs(agree - 0.625) < 0.02, `another ${name} draws another mask (${agree} agree)`)
    }
    h.ops.dropout(y, x.tensor, rng.tensor, 9, 0)
    await h.equal(t, y, x.values, 'p = 0 copies')
    h.ops.dropout(x.tensor, x.tensor, rng.tensor, 9, 1)
    await h.equal(t, x.tensor, new Array(size).fill(0), 'p = 1 leaves nothing, in place')
    for (const p of [-0.1, 1.5]) {
      const out = h.empty([size], dtype)
      await h.rejects(t, out, () => h.ops.dropout(out, x.tensor, rng.tensor, 9, p), /p is/)
    }
  })
}
