import t from 'tap'
import { type Operand, openHarness } from './harness.js'

const h = await openHarness()
const int32 = (values: ArrayLike<number>, shape?: number[]) => h.operand(values, shape, 'int32')
const NONE = Number.NEGATIVE_INFINITY

const rowsOf = (x: Operand) => {
  const [count, width] = x.shape as [number, number]
  return Array.from({ length: count }, (_, b) => Array.from(x.values.subarray(b * width, (b + 1) * width)))
}
function logSumExp(row: number[]): number {
  const highest = Math.max(...row)
  return highest + Math.log(row.reduce((sum, x) => sum + Math.exp(x - highest), 0))
}

t.test('log_softmax', async (t) => {
  for (const [rows, width] of [
    [1, 1],
    [3, 7],
    [2, 1000],
    [2, 5003],
  ] as const) {
    const x = h.random.normal([rows, width], { scale: 5 })
    const y = h.garbage([rows, width])
    h.ops.log_softmax(y, x.tensor)
    const expected = rowsOf(x).flatMap((row) => {
      const total = logSumExp(row)
      return row.map((v) => v - total)
    })
    await h.close(t, y, expected, { absolute: 4e-6, relative: 1e-6 }, `[${rows}, ${width}]`)
    h.ops.log_softmax(x.tensor, x.tensor)
    await h.equal(t, x.tensor, await h.read(y), 'in place')
  }
  const suppressed = h.operand([NONE, 0, NONE, 0, 1e30, NONE], [2, 3])
  h.ops.log_softmax(suppressed.tensor, suppressed.tensor)
  const expected = [NONE, 0, NONE, -1e30, 0, NONE]
  await h.close(t, suppressed.tensor, expected, { absolute: 1e-6, relative: 1e-6 }, '-inf stays')
})

/** transformers' RepetitionPenaltyLogitsProcessor, then NoRepeatNGramLogitsProcessor, on one row. */
function processed(logits: number[], history: number[], penalty: number, ngram: number): number[] {
  const out = [...logits]
  const known = (token: number) => token >= 0 && token < logits.length
  for (const token of new Set(history.filter(known)))
    out[token] = logits[token]! > 0 ? logits[token]! / penalty : logits[token]! * penalty
  if (ngram > 0) {
    const last = history.slice(history.length - (ngram - 1), history.length)
    for (let i = 0; i + ngram <= history.length && history.length >= ngram - 1; i++) {
      const gram = history.slice(i, i + ngram)
      if (known(gram.at(-1)!) && gram.slice(0, -1).every((token, n) => token === last[n])) out[gram.at(-1)!] = NONE
    }
  }
  return out
}

t.test('a logit that is NaN makes its row NaN', async (t) => {
  for (const width of [5, 40, 1040]) {
    const x = h.operand(
      Array.from({ length: width }, (_, v) => (v === 1 ? Number.NaN : v / width)).concat(new Array(width).fill(0)),
      [2, width],
    )
    const y = h.garbage([2, width])
    h.ops.log_softmax(y, x.tensor)
    const values = await h.read(y)
    t.ok(values.slice(0, width).every(Number.isNaN), `all ${width}`)
    t.notOk(values.slice(width).some(Number.isNaN), 'but no other row')
  }
})

t.test('logits_process', async (t) => {
  const [rows, width, columns] = [4, 11, 20]
  const lengths = [20, 0, 3, 13]
  for (const penalty of [1, 1.3, 0.7]) {
    for (const ngram of [0, 1, 2, 3]) {
      const logits = h.random.normal([rows, width])
      const history = h.random.integers([rows, columns], -1, width + 2) // padding, and tokens that the head lacks
      history.values.fill(-7, 2 * columns + 3, 3 * columns) // past a row's length anything may stand
      const past = h.operand(history.values, history.shape, 'int32')
      const histories = rowsOf(past).map((row, b) => row.slice(0, lengths[b]))
      const expected = rowsOf(logits).flatMap((row, b) => processed(row, histories[b]!, penalty, ngram))
      h.ops.logits_process(logits.tensor, past.tensor, int32(lengths).tensor, penalty, ngram)
      await h.close(t, logits.tensor, expected, { absolute: 0, relative: 2e-7 }, `penalty ${penalty}, n-grams of ${ngram}`)
    }
  }
  const refused = (history: number[], length: number, penalty: number, pattern: RegExp) => {
    const logits = h.zeros([1, 5])
    const call = () => h.ops.logits_process(logits, int32(history, [1, 2]).tensor, int32([length]).tensor, penalty, 0)
    return h.rejects(t, logits, call, pattern)
  }
  await refused([0, 0], 3, 1.1, /lengths\[0\] is 3/)
  await refused([0, 0], 2, 0, /repetition_penalty is 0/)
})

t.test('suppress_tokens and argmax', async (t) => {
  const logits = h.random.normal([3, 70])
  const ids = [0, 69, 33]
  h.ops.suppress_tokens(logits.tensor, int32(ids).tensor)
  const expected = rowsOf(logits).map((row) => row.map((x, v) => (ids.includes(v) ? NONE : x)))
  await h.equal(t, logits.tensor, expected.flat())
  const [tokens, values] = [h.garbage([3], 'int32'), h.garbage([3])]
  h.ops.argmax(tokens, values, logits.tensor)
  const highest = expected.map((row) => Math.max(...row))
  await h.equal(
    t,
    tokens,
    expected.map((row, b) => row.indexOf(highest[b]!)),
    'tokens',
  )
  await h.equal(t, values, highest, 'values')
  const tie = h.operand([1, 5, 5, 0, 5], [1, 5])
  const first = h.garbage([1], 'int32')
  h.ops.argmax(first, null, tie.tensor)
  await h.equal(t, first, [1], 'the lowest index wins a tie')
  const bad = h.zeros([1, 4])
  await h.rejects(t, bad, () => h.ops.suppress_tokens(bad, int32([4]).tensor), /ids\[0\] is 4/)
})

interface Warpers {
  temperature: number
  topK: number
  topP: number
  minP: number
}

/** transformers' warpers in their order: what each token's probability becomes. */
function warped(logits: number[], { temperature, topK, topP, minP }: Warpers): number[] {
  let scores = logits.map((x) => x / temperature)
  const probabilities = () => {
    const total = logSumExp(scores)
    return scores.map((x) => Math.exp(x - total))
  }
  if (topK > 0) {
    const lowest = scores.toSorted((a, b) => b - a)[Math.min(topK, scores.length) - 1]!
    scores = scores.map((x) => (x < lowest ? NONE : x))
  }
  if (topP < 1) {
    const p = probabilities()
    const order = p.map((_, v) => v).sort((a, b) => p[b]! - p[a]! || a - b)
    let before = 0
    for (const [n, v] of order.entries()) {
      if (n > 0 && before >= topP) scores[v] = NONE
      before += p[v]!
    }
  }
  if (minP > 0) {
    const p = probabilities()
    const highest = Math.max(...p)
    scores = scores.map((x, v) => (p[v]! < minP * highest ? NONE : x))
  }
  return probabilities()
}

const settings: Warpers[] = [
  { temperature: 1, topK: 0, topP: 1, minP: 0 },
  { temperature: 0.5, topK: 0, topP: 1, minP: 0 },
  { temperature: 1.7, topK: 5, topP: 1, minP: 0 },
  { temperature: 1, topK: 0, topP: 0.7, minP: 0 },
  { temperature: 1, topK: 0, topP: 1, minP: 0.2 },
  { temperature: 1.2, topK: 12, topP: 0.8, minP: 0.15 },
  { temperature: 1, topK: 1, topP: 1, minP: 0 },
]

t.test('sample draws from what the warpers leave, with its probabilities', async (t) => {
  const [draws, width] = [6000, 23]
  const row = Array.from(h.random.normal([width], { scale: 1.5 }).values)
  row[3] = row[8]! // a tie
  const logits = h.operand(new Array(draws).fill(row).flat(), [draws, width])
  const rng = int32(Array.from({ length: draws }, (_, i) => [5, i]).flat(), [draws, 2])
  const total = logSumExp(row)
  for (const w of settings) {
    const [tokens, logProbs] = [h.garbage([draws], 'int32'), h.garbage([draws])]
    h.ops.sample(tokens, logProbs, logits.tensor, rng.tensor, w.temperature, w.topK, w.topP, w.minP)
    const p = warped(row, w)
    const drawn = await h.read(tokens)
    const counts = new Array<number>(width).fill(0)
    for (const token of drawn) counts[token]!++
    t.ok(
      p.every((x, v) => (x === 0) === (counts[v] === 0) || (x > 0 && x < 2e-3)),
      `${JSON.stringify(w)}: the exact set`,
    )
    const likely = p.map((_, v) => v).filter((v) => p[v]! > 2e-3)
    const chiSquare = likely.reduce((sum, v) => sum + (counts[v]! - draws * p[v]!) ** 2 / (draws * p[v]!), 0)
    const freedom = Math.max(likely.length - 1, 1)
    t.ok(chiSquare < freedom + 4 * Math.sqrt(2 * freedom), `chi-square ${chiSquare} with ${freedom} degrees of freedom`)
    await h.close(
      t,
      logProbs,
      drawn.map((token) => row[token]! - total),
      { absolute: 2e-6, relative: 1e-6 },
      'log_probs',
    )
  }
})

t.test('sample over a large vocabulary', async (t) => {
  const [rows, width] = [16, 20_011]
  const logits = h.random.normal([rows, width], { scale: 3 })
  const rng = int32(Array.from({ length: rows }, (_, i) => [i, 77]).flat(), [rows, 2])
  for (const w of [...settings, { temperature: 1, topK: width + 5, topP: 0.999, minP: 0 }]) {
    const tokens = h.garbage([rows], 'int32')
    h.ops.sample(tokens, null, logits.tensor, rng.tensor, w.temperature, w.topK, w.topP, w.minP)
    const drawn = await h.read(tokens)
    t.ok(
      rowsOf(logits).every((row, b) => warped(row, w)[drawn[b]!]! > 0),
      JSON.stringify(w),
    )
    const alone = h.garbage([1], 'int32')
    const row = h.operand(rowsOf(logits)[9]!, [1, width])
    h.ops.sample(alone, null, row.tensor, int32([9, 77], [1, 2]).tensor, w.temperature, w.topK, w.topP, w.minP)
    await h.equal(t, alone, [drawn[9]!], 'alone as in the batch')
  }
  const suppressed = h.operand([NONE, NONE, 3, NONE], [1, 4])
  for (let counter = 0; counter < 20; counter++) {
    const token = h.garbage([1], 'int32')
    h.ops.sample(token, null, suppressed.tensor, int32([1, counter], [1, 2]).tensor, 1, counter % 2 ? 3 : 0, 1, 0)
    await h.equal(t, token, [2], 'a suppressed token is never drawn')
  }
})

t.test('top-p and min-p draw the same without ordering the whole vocabulary', async (t) => {
  const [draws, width] = [24, 5003]
  const normal = () => Array.from(h.random.normal([width], { scale: 2 }).values)
  const rows: Record<string, number[]> = {
    spread: normal(),
    flat: normal().map((x) => x / 20),
    equal: new Array<number>(width).fill(-1.5),
    peaked: normal().map((x, v) => x + (v === width - 1 ? 25 : 0)),
    suppressed: normal().map((x, v) => (v % 3 ? NONE : x)),
  }
  const rng = int32(Array.from({ length: draws }, (_, i) => [3, i]).flat(), [draws, 2]).tensor
  for (const [kind, row] of Object.entries(rows)) {
    const logits = h.operand(new Array(draws).fill(row).flat(), [draws, width]).tensor
    for (const [temperature, topP, minP] of [
      [1, 0.9, 0],
      [0.6, 0.5, 0.02],
      [1.4, 0.999, 0],
      [1, 1, 0.1],
    ] as const) {
      const [some, all] = [h.garbage([draws], 'int32'), h.garbage([draws], 'int32')]
      h.ops.sample(some, null, logits, rng, temperature, 0, topP, minP)
      h.ops.sample(all, null, logits, rng, temperature, width, topP, minP)
      await h.equal(t, some, await h.read(all), `${kind}: temperature ${temperature}, top_p ${topP}, min_p ${minP}`)
    }
  }
  for (const value of [Number.NaN, NONE]) {
    const token = h.garbage([1], 'int32')
    const hopeless = h.operand(new Array<number>(width).fill(value), [1, width]).tensor
    h.ops.sample(token, null, hopeless, int32([1, 1], [1, 2]).tensor, 1, 0, 0.9, 0.1)
    t.ok((await h.read(token))[0]! < width, `a row of ${value}`)
  }
})

t.test('sample refuses', async (t) => {
  const refused = (pattern: RegExp, temperature: number, topK = 0, topP = 1, minP = 0) => {
    const tokens = h.garbage([1], 'int32')
    const rng = int32([1, 2], [1, 2]).tensor
    return h.rejects(t, tokens, () => h.ops.sample(tokens, null, h.zeros([1, 4]), rng, temperature, topK, topP, minP), pattern)
  }
  await refused(/temperature is 0/, 0)
  await refused(/temperature is nan/i, Number.NaN)
  await refused(/top_k >= 0/, 1, -1)
  await refused(/top_p <= 1/, 1, 0, 0)
  await refused(/min_p <= 1/, 1, 0, 1, 1.5)
})

t.test('beam_topk equals a sort of all candidates', async (t) => {
  for (const [prompts, n, width, k] of [
    [1, 1, 5, 5],
    [3, 4, 700, 8],
    [2, 10, 1003, 20],
    [1, 3, 4, 12],
  ] as const) {
    const logProbs = h.random.normal([prompts * n, width], { scale: 3 })
    logProbs.values.fill(NONE, 3, 5)
    if (width > 100) logProbs.values.copyWithin(width + 5, 20, 30) // ties within and between beams
    const x = h.operand(logProbs.values, logProbs.shape)
    const beamScores = h.operand(Array.from({ length: prompts * n }, (_, i) => (i % n ? -(i % 3) : 0)))
    const outputs = [h.garbage([prompts, k]), h.garbage([prompts, k], 'int32'), h.garbage([prompts, k], 'int32')] as const
    h.ops.beam_topk(...outputs, x.tensor, beamScores.tensor)
    const best = Array.from({ length: prompts }, (_, p) => {
      const all = Array.from({ length: n * width }, (_, at) => {
        const beam = Math.floor(at / width)
        const score = Math.fround(x.values[p * n * width + at]! + beamScores.values[p * n + beam]!)
        return { score, beam, token: at % width, at }
      })
      return all.sort((a, b) => (a.score === b.score ? a.at - b.at : b.score - a.score)).slice(0, k)
    }).flat()
    await h.equal(
      t,
      outputs[0],
      best.map((c) => c.score),
      'scores',
    )
    await h.equal(
      t,
      outputs[1],
      best.map((c) => c.beam),
      'beams',
    )
    await h.equal(
      t,
      outputs[2],
      best.map((c) => c.token),
      'tokens',
    )
  }
  const few = h.garbage([1, 5])
  const beams = h.garbage([1, 5], 'int32')
  const call = () => h.ops.beam_topk(few, beams, h.garbage([1, 5], 'int32'), h.zeros([2, 2]), h.zeros([2]))
  await h.rejects(t, few, call, /5 best of 4 candidates/)
})
