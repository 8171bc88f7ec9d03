import { invalidArgument } from '../errors.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type BeamCandidates, type BeamMove, BeamSearch, candidatesPerStep, type Hypothesis } from './beam-search.js'
import type { ResolvedConfig } from './config.js'
import { type Job, Lanes, type LanesInput } from './lanes.js'
import { RepeatedStep } from './repeated-step.js'
import { LogitsRules } from './rules.js'
import type { EndConditions, Request } from './sequence.js'

/** A prompt with the search for its continuation. */
interface SearchJob extends Job {
  request: Request
  search: BeamSearch
}

/**
 * Beam search: the device scores and picks candidates, the host keeps the hypotheses and says which beams go on.
 * @returns finished hypotheses of each prompt, best first
 */
export async function searchBeams(
  input: LanesInput,
  requests: readonly Request[],
  config: ResolvedConfig,
  ends: EndConditions,
): Promise<Hypothesis[][]> {
  const jobs = requests.map((request): SearchJob => {
    const { inputIds, maxNewTokens } = request
    return { inputIds, maxNewTokens, request, search: new BeamSearch({ ...config, maxNewTokens }) }
  })
  const loop = new BeamLoop(input, jobs, config, ends)
  try {
    await loop.run()
    return jobs.map(({ search }) => search.hypotheses)
  } finally {
    loop.dispose()
  }
}

class BeamLoop {
  readonly #input: LanesInput
  readonly #config: ResolvedConfig
  readonly #ends: EndConditions
  readonly #lanes: Lanes<SearchJob>
  /** Candidates a step. */
  readonly #width: number
  readonly #repeated: RepeatedStep
  #beams: BeamTensors
  #rules: LogitsRules | null = null

  constructor(input: LanesInput, jobs: readonly SearchJob[], config: ResolvedConfig, ends: EndConditions) {
    this.#input = input
    this.#config = config
    this.#ends = ends
    this.#lanes = new Lanes(input, jobs)
    this.#width = candidatesPerStep(input.width, config.eosTokenId.length)
    this.#beams = this.#tensorsFor(this.#lanes.rows / input.width)
    this.#repeated = new RepeatedStep(input.device, () => scope(() => this.#step()))
  }

  #tensorsFor(lanes: number): BeamTensors {
    return new BeamTensors(this.#input.device, lanes, this.#input.width, this.#width)
  }

  async run(): Promise<void> {
    const lanes = this.#lanes
    while (true) {
      const moves = new Map<number, BeamMove>()
      const stepped = lanes.live
      if (stepped.length > 0) {
        const best = await this.#beams.best()
        this.#input.signal?.throwIfAborted()
        for (const { lane } of stepped) moves.set(lane, this.#advance(lane, best[lane]!))
        this.#finish(moves)
      }
      // A search may be done with its first move: then its lane is free again.
      while (lanes.isDue && (await this.#admit(moves)));
      if (lanes.live.length === 0) return
      const rows = lanes.shrink()
      if (rows) this.#shrink(rows, moves)
      this.#beams.write(moves)
      const grown = await lanes.decoder.nextStep()
      const changed = this.#rules!.prepare(lanes.rows, (row) => lanes.decoder.stepsOf(row))
      if (grown || changed) this.#repeated.changed()
      withCallSite('generate', () => this.#repeated.run())
    }
  }

  /** Queues a step of all beams. */
  #step(): void {
    const { parents, tokens, scores } = this.#beams
    const { ops } = this.#input.device
    this.#lanes.decoder.permute(parents)
    this.#rules!.permute(parents)
    this.#rules!.append(tokens)
    const logits = this.#lanes.decoder.forward(tokens)
    ops.log_softmax(logits, logits)
    this.#rules!.apply(logits)
    this.#beams.choose(logits, scores)
  }

  /** Lets prompts in, and makes their first moves; @returns whether there was room for any. */
  async #admit(moves: Map<number, BeamMove>): Promise<boolean> {
    const lanes = this.#lanes
    const { device } = this.#input
    const passes: { begun: readonly number[]; beams: BeamTensors }[] = []
    try {
      await lanes.admit((begun, logits) => {
        const vocabSize = logits.shape[1]!
        checkWidth(this.#width, lanes.width, vocabSize)
        this.#rules ??= new LogitsRules(device, this.#config, { rows: lanes.rows, longest: lanes.longest, vocabSize })
        const prompts = begun.map((lane) => lanes.jobOf(lane).inputIds)
        device.ops.log_softmax(logits, logits)
        this.#rules.applyToPrompts(logits, prompts)
        // The first step has one beam a prompt: the others would be the same.
        const beams = this.#tensorsFor(begun.length)
        passes.push({ begun, beams })
        beams.choose(logits, Tensor.zeros(device, [begun.length]))
        for (const [i, lane] of begun.entries()) for (const row of lanes.rowsOf(lane)) this.#rules.start(row, prompts[i]!)
      })
      for (const { begun, beams } of passes) {
        const best = await beams.best()
        this.#input.signal?.throwIfAborted()
        for (const [i, lane] of begun.entries()) moves.set(lane, this.#advance(lane, best[i]!))
      }
    } finally {
      for (const { beams } of passes) beams.dispose()
    }
    this.#finish(moves)
    return passes.length > 0
  }

  #advance(lane: number, best: BeamCandidates): BeamMove {
    const { search, request } = this.#lanes.jobOf(lane)
    const stops = Array.from(best.tokens, (token, i) =>
      this.#ends.reached(request, [...search.tokensOf(best.beams[i]!), token]),
    )
    return search.advance(best, stops)
  }

  /** Searches that are done give their lanes back. */
  #finish(moves: Map<number, BeamMove>): void {
    const done = [...moves.keys()].filter((lane) => this.#lanes.jobOf(lane).search.done)
    for (const lane of done) moves.delete(lane)
    this.#lanes.finish(done)
  }

  /** Only these rows are left: `moves` are those of the lanes that are, by their former numbers. */
  #shrink(rows: readonly number[], moves: Map<number, BeamMove>): void {
    const width = this.#lanes.width
    const left = [...new Set(rows.map((row) => Math.floor(row / width)))].map((lane) => moves.get(lane)!)
    moves.clear()
    for (const [lane, move] of left.entries()) moves.set(lane, move)
    this.#repeated.changed()
    this.#rules!.shrink(rows)
    this.#beams.dispose()
    this.#beams = this.#tensorsFor(left.length)
  }

  dispose(): void {
    this.#repeated.dispose()
    this.#beams.dispose()
    this.#rules?.dispose()
    this.#lanes.dispose()
  }
}

/** What passes between host and device at each step, a lane for each prompt, with its rows side by side. */
class BeamTensors {
  /** int32 [B]: the rows that go on, and with which tokens */
  readonly parents: Tensor
  readonly tokens: Tensor
  /** float32 [B]: the sums of log-probabilities so far */
  readonly scores: Tensor
  /** float32, int32, int32 [lanes, width]: the best candidates, best first */
  readonly bestScores: Tensor
  readonly bestBeams: Tensor
  readonly bestTokens: Tensor
  readonly #numBeams: number

  constructor(device: Device, lanes: number, numBeams: number, width: number) {
    const of = (shape: number[], dtype: 'int32' | 'float32') => keep(Tensor.empty(device, shape, dtype, 'cache'))
    this.#numBeams = numBeams
    this.parents = of([lanes * numBeams], 'int32')
    this.tokens = of([lanes * numBeams], 'int32')
    this.scores = of([lanes * numBeams], 'float32')
    this.bestScores = of([lanes, width], 'float32')
    this.bestBeams = of([lanes, width], 'int32')
    this.bestTokens = of([lanes, width], 'int32')
  }

  /** Queues the choice of the best candidates by log-probabilities [B, V] and the beams' scores [B]. */
  choose(logProbs: Tensor, scores: Tensor): void {
    logProbs.device.ops.beam_topk(this.bestScores, this.bestBeams, this.bestTokens, logProbs, scores)
  }

  async best(): Promise<BeamCandidates[]> {
    const read = [this.bestScores.data(), this.bestBeams.data(), this.bestTokens.data()]
    const [scores, beams, tokens] = await Promise.all(read)
    const [lanes, width] = this.bestScores.shape as [number, number]
    return Array.from({ length: lanes }, (_, lane) => {
      const range = [lane * width, (lane + 1) * width] as const
      return { scores: scores!.subarray(...range), beams: beams!.subarray(...range), tokens: tokens!.subarray(...range) }
    })
  }

  /** The moves of lanes; the rows of one that has none stay what they are. */
  write(moves: ReadonlyMap<number, BeamMove>): void {
    const rows = this.parents.size
    const parents = Int32Array.from({ length: rows }, (_, row) => row)
    const [tokens, scores] = [new Int32Array(rows), new Float32Array(rows)]
    for (const [lane, move] of moves) {
      const first = lane * this.#numBeams
      for (const [i, beam] of move.beams.entries()) parents[first + i] = first + beam
      tokens.set(move.tokens, first)
      scores.set(move.scores, first)
    }
    this.parents.write(parents)
    this.tokens.write(tokens)
    this.scores.write(scores)
  }

  dispose(): void {
    const { parents, tokens, scores, bestScores, bestBeams, bestTokens } = this
    for (const tensor of [parents, tokens, scores, bestScores, bestBeams, bestTokens]) tensor.dispose()
  }
}

function checkWidth(width: number, numBeams: number, vocabSize: number): void {
  if (width <= vocabSize) return
  throw invalidArgument(
    `GenerationConfig.numBeams: ${numBeams} beams need ${width} candidates a step, but the model has only ${vocabSize} tokens`,
    { parameter: 'GenerationConfig.numBeams' },
  )
}
