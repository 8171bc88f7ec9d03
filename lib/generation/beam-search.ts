/** The best continuations of a prompt's beams at one step, best first: score (sum of log-probabilities), beam, token. */
export interface BeamCandidates {
  scores: ArrayLike<number>
  beams: ArrayLike<number>
  tokens: ArrayLike<number>
}

export interface BeamOptions {
  numBeams: number
  maxNewTokens: number
  lengthPenalty: number
  earlyStopping: boolean | 'never'
}

/** A finished hypothesis: the new tokens and the sum of their log-probabilities over length ** lengthPenalty. */
export interface Hypothesis {
  tokenIds: number[]
  score: number
  /** Whether an end token or a stop string ended it, not the length. */
  stopped: boolean
}

/** What the beams do next: beam i continues the former beam `beams[i]` with `tokens[i]`. */
export interface BeamMove {
  beams: number[]
  tokens: number[]
  scores: number[]
}

interface Running {
  tokenIds: number[]
  score: number
}

// What transformers adds to scores that must lose; with float32 scores, any two of them are as good as equal.
const LOST = -1e9

/**
 * The beams of one prompt, as transformers' `_beam_search` moves them (`num_beams`, `length_penalty`, `early_stopping`; the
 * heuristics and their order included). Scores are float32 throughout.
 */
export class BeamSearch {
  readonly #options: BeamOptions
  #running: Running[]
  #finished: (Hypothesis & { complete: boolean })[]
  #length = 0
  #improvable = true
  #exhausted = false

  constructor(options: BeamOptions) {
    this.#options = options
    // Only the first beam counts at first: the others are the same.
    this.#running = Array.from({ length: options.numBeams }, (_, i) => ({ tokenIds: [], score: i === 0 ? 0 : LOST }))
    this.#finished = this.#running.map(() => ({ tokenIds: [], score: LOST, stopped: false, complete: false }))
  }

  /** The new tokens of a running beam. */
  tokensOf(beam: number): readonly number[] {
    return this.#running[beam]!.tokenIds
  }

  get done(): boolean {
    if (!this.#improvable || this.#exhausted) return true
    return this.#options.earlyStopping === true && this.#finished.every((hypothesis) => hypothesis.complete)
  }

  /** Finished hypotheses, best first. */
  get hypotheses(): Hypothesis[] {
    return this.#finished.filter((h) => h.complete).map(({ tokenIds, score, stopped }) => ({ tokenIds, score, stopped }))
  }

  /**
   * One step.
   * @param candidates - at least 2 numBeams, best first; see {@link candidatesPerStep}
   * @param stops - for each candidate, whether it ends with an end token or a stop string
   */
  advance(candidates: BeamCandidates, stops: readonly boolean[]): BeamMove {
    const { numBeams, maxNewTokens } = this.#options
    this.#length++
    const full = this.#length >= maxNewTokens
    const ended = stops.map((stop) => stop || full)
    const extended = stops.map((_, i) => [...this.#running[candidates.beams[i]!]!.tokenIds, candidates.tokens[i]!])
    const masked = ended.map((end, i) => Math.fround(candidates.scores[i]! + (end ? LOST : 0)))
    const next = best(masked, numBeams)
    this.#finish(candidates, stops, ended, extended)
    this.#running = next.map((i) => ({ tokenIds: extended[i]!, score: masked[i]! }))
    this.#exhausted = ended.every(Boolean)
    this.#improvable &&= this.#canImprove()
    return {
      beams: next.map((i) => candidates.beams[i]!),
      tokens: next.map((i) => candidates.tokens[i]!),
      scores: next.map((i) => masked[i]!),
    }
  }

  #finish(candidates: BeamCandidates, stops: readonly boolean[], ended: boolean[], extended: number[][]): void {
    const { numBeams, lengthPenalty, earlyStopping } = this.#options
    const closed = (earlyStopping === true && this.#finished.every((h) => h.complete)) || !this.#improvable
    const divisor = this.#length ** lengthPenalty
    const merged = [...this.#finished]
    for (const [i, tokenIds] of extended.entries()) {
      // Only the first numBeams may be returned; the rest is there so that numBeams can go on.
      const complete = ended[i]! && i < numBeams
      let score = Math.fround(candidates.scores[i]! / divisor)
      if (closed) score = Math.fround(score + LOST)
      if (!complete) score = Math.fround(score + LOST)
      merged.push({ tokenIds, score, stopped: stops[i]!, complete })
    }
    const scores = merged.map((hypothesis) => hypothesis.score)
    this.#finished = best(scores, numBeams).map((i) => merged[i]!)
  }

  /** Whether the best running beam may still beat the worst finished one. */
  #canImprove(): boolean {
    const { maxNewTokens, lengthPenalty, earlyStopping } = this.#options
    const length = earlyStopping === 'never' && lengthPenalty > 0 ? maxNewTokens : this.#length
    const possible = Math.fround(this.#running[0]!.score / length ** lengthPenalty)
    const worst = Math.min(...this.#finished.map((hypothesis) => hypothesis.score))
    return this.#finished.some((hypothesis) => possible > (hypothesis.complete ? worst : LOST))
  }
}

/** Candidates a step needs so that numBeams can go on even if all end tokens are among them. */
export function candidatesPerStep(numBeams: number, numEndTokens: number): number {
  return Math.max(2, 1 + numEndTokens) * numBeams
}

/** Indices of the k largest, largest first; of equals the first. */
function best(scores: readonly number[], k: number): number[] {
  return scores
    .map((_, i) => i)
    .sort((a, b) => scores[b]! - scores[a]! || a - b)
    .slice(0, k)
}
