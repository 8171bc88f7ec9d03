import fc from 'fast-check'
import t from 'tap'
import { type BeamOptions, BeamSearch, candidatesPerStep, type Hypothesis } from '../../../lib/generation/beam-search.js'

const END = 0

/** Log-probabilities of the next token given the last one: a model that a test can enumerate. */
type Model = (last: number) => readonly number[]

/** The device's part of a beam search, slowly. */
function search(model: Model, options: BeamOptions): Hypothesis[] {
  const beams = new BeamSearch(options)
  const k = candidatesPerStep(options.numBeams, 1)
  let scores = [0]
  let last = [1]
  while (!beams.done) {
    const all = last
      .flatMap((token, beam) => model(token).map((p, next) => ({ score: Math.fround(p + scores[beam]!), beam, next })))
      .sort((a, b) => b.score - a.score || a.beam - b.beam || a.next - b.next)
      .slice(0, k)
    const move = beams.advance(
      { scores: all.map((c) => c.score), beams: all.map((c) => c.beam), tokens: all.map((c) => c.next) },
      all.map((c) => c.next === END),
    )
    scores = move.scores
    last = move.tokens
  }
  return beams.hypotheses
}

/** All sequences that end with END or have the greatest length, best first. */
function enumerate(model: Model, maxNewTokens: number, lengthPenalty: number): Hypothesis[] {
  const found: Hypothesis[] = []
  const visit = (tokenIds: number[], sum: number) => {
    const stopped = tokenIds.at(-1) === END
    if (stopped || tokenIds.length === maxNewTokens) {
      found.push({ tokenIds, score: sum / tokenIds.length ** lengthPenalty, stopped })
      return
    }
    for (const [next, p] of model(tokenIds.at(-1) ?? 1).entries()) visit([...tokenIds, next], sum + p)
  }
  visit([], 0)
  return found.sort((a, b) => b.score - a.score)
}

const markov = (vocabSize: number) =>
  fc
    .array(fc.array(fc.double({ min: -4, max: 4, noNaN: true }), { minLength: vocabSize, maxLength: vocabSize }), {
      minLength: vocabSize,
      maxLength: vocabSize,
    })
    .map((logits): Model => {
      const rows = logits.map((row) => {
        const total = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0))
        return row.map((x) => x - total)
      })
      return (last) => rows[last]!
    })

t.test('with more beams than there are sequences it finds the best of all', async () => {
  fc.assert(
    fc.property(
      markov(6),
      fc.constantFrom(0, 0.5, 1, 2),
      fc.integer({ min: 1, max: 3 }),
      (model, lengthPenalty, maxNewTokens) => {
        const numBeams = 5 ** maxNewTokens
        const expected = enumerate(model, maxNewTokens, lengthPenalty)
        // A step must have 2 numBeams candidates, which the first steps of so small a model have not: pad with lost ones.
        const beams = new BeamSearch({ numBeams, maxNewTokens, lengthPenalty, earlyStopping: 'never' })
        let running = [{ score: 0, last: 1 }]
        while (!beams.done) {
          const all = running
            .flatMap(({ score, last }, beam) => model(last).map((p, next) => ({ score: Math.fround(score + p), beam, next })))
            .sort((a, b) => b.score - a.score)
          while (all.length < 2 * numBeams) all.push({ score: Number.NEGATIVE_INFINITY, beam: 0, next: 1 })
          const top = all.slice(0, 2 * numBeams)
          const move = beams.advance(
            { scores: top.map((c) => c.score), beams: top.map((c) => c.beam), tokens: top.map((c) => c.next) },
            top.map((c) => c.next === END),
          )
          running = move.scores.map((score, i) => ({ score, last: move.tokens[i]! }))
        }
        const [best] = beams.hypotheses
        return Math.abs(best!.score - expected[0]!.score) < 1e-4
      },
    ),
    { numRuns: 50 },
  )
})

t.test('hypotheses are ordered, distinct and scored by their own length', async () => {
  fc.assert(
    fc.property(
      markov(8),
      fc.integer({ min: 2, max: 4 }),
      fc.constantFrom(true, false, 'never' as const),
      (model, numBeams, earlyStopping) => {
        const lengthPenalty = 0.7
        const found = search(model, { numBeams, maxNewTokens: 6, lengthPenalty, earlyStopping })
        const scores = found.map((h) => h.score)
        const right = found.every(({ tokenIds, score }) => {
          const sum = tokenIds.reduce((total, token, i) => total + model(tokenIds[i - 1] ?? 1)[token]!, 0)
          return Math.abs(sum / tokenIds.length ** lengthPenalty - score) < 1e-4
        })
        const ends = found.every(
          ({ tokenIds, stopped }) => stopped === (tokenIds.at(-1) === END) && !tokenIds.slice(0, -1).includes(END),
        )
        const distinct = new Set(found.map((h) => h.tokenIds.join())).size === found.length
        return right && ends && distinct && found.length === numBeams && scores.every((s, i) => i === 0 || s <= scores[i - 1]!)
      },
    ),
  )
})

t.test('early stopping ends with the first full set', async (t) => {
  // END is always second best: the beam that ends at once is soon beaten by none.
  const model: Model = () => [-0.8, -0.7, -3, -3, -3, -3]
  const early = search(model, { numBeams: 2, maxNewTokens: 50, lengthPenalty: 1, earlyStopping: true })
  t.ok(early.every((h) => h.tokenIds.length <= 3 && h.stopped))
  const never = search(model, { numBeams: 2, maxNewTokens: 50, lengthPenalty: 1, earlyStopping: 'never' })
  t.equal(never[0]!.tokenIds.length, 50)
  t.equal(never[0]!.stopped, false)
})

t.test('a step asks for enough candidates to go on if all end tokens are among them', async (t) => {
  t.equal(candidatesPerStep(4, 0), 8)
  t.equal(candidatesPerStep(4, 1), 8)
  t.equal(candidatesPerStep(4, 3), 16)
})
