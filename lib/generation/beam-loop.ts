import { invalidArgument } from '../errors.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type BeamCandidates, type BeamMove, BeamSearch, candidatesPerStep, type Hypothesis } from './beam-search.js'
import type { ResolvedConfig } from './config.js'
import { type DecoderInput, GroupDecoder } from './decoder.js'
import { RepeatedStep } from './repeated-step.js'
import { LogitsRules } from './rules.js'
import type { EndConditions, Request } from './sequence.js'
import { passed } from './token-loop.js'

/**
 * Beam search for a group: the device scores and picks candidates, the host keeps the hypotheses and says which beams go on.
 * @param requests the group's prompts in their order
 * @returns finished hypotheses of each prompt, best first
 */
export async function searchBeams(
  input: DecoderInput,
  requests: readonly Request[],
  config: ResolvedConfig,
  ends: EndConditions,
): Promise<Hypothesis[][]> {
  const { device, maxSteps, rowsPerPrompt: numBeams } = input
  const decoder = new GroupDecoder(input)
  const searches = requests.map(({ maxNewTokens }) => new BeamSearch({ ...config, maxNewTokens }))
  const width = candidatesPerStep(numBeams, config.eosTokenId.length)
  const prompts = requests.flatMap(({ inputIds }) => new Array<Int32Array>(numBeams).fill(inputIds))
  let active = requests.map((_, prompt) => prompt)
  let beams = new BeamTensors(device, requests.length, numBeams, width)
  let rules: LogitsRules | null = null
  let step = 0
  const choose = (logits: Tensor, scores: Tensor, stride: number) => {
    device.ops.log_softmax(logits, logits)
    rules!.apply(logits, step, stride)
    device.ops.beam_topk(beams.bestScores, beams.bestBeams, beams.bestTokens, logits, scores)
  }
  const repeated = new RepeatedStep(device, () =>
    scope(() => {
      decoder.permute(beams.parents)
      rules!.permute(beams.parents)
      rules!.append(beams.tokens)
      choose(decoder.forward(beams.tokens), beams.scores, 1)
    }),
  )
  try {
    const logits = await decoder.prefill(() => passed(input))
    checkWidth(width, numBeams, logits.shape[1]!)
    rules = new LogitsRules(device, config, prompts, maxSteps, logits.shape[1]!)
    // The first step has one beam a prompt: the others would be the same.
    withCallSite('generate', () => scope(() => choose(logits, Tensor.zeros(device, [requests.length]), numBeams)))
    logits.dispose()
    while (true) {
      const best = await beams.best()
      input.signal?.throwIfAborted()
      const moves = active.map((prompt, i) => advance(searches[prompt]!, best[i]!, requests[prompt]!, ends))
      const going = active.flatMap((prompt, i) => (searches[prompt]!.done ? [] : [i]))
      if (going.length === 0) return searches.map((search) => search.hypotheses)
      if (going.length < active.length) {
        active = going.map((i) => active[i]!)
        const rows = going.flatMap((i) => Array.from({ length: numBeams }, (_, beam) => i * numBeams + beam))
        repeated.changed()
        decoder.reorder(rows)
        rules.reorder(rows)
        beams.dispose()
        beams = new BeamTensors(device, active.length, numBeams, width)
      }
      beams.write(going.map((i) => moves[i]!))
      step++
      const grown = await decoder.nextStep()
      if (grown || rules.changesAt(step)) repeated.changed()
      withCallSite('generate', () => repeated.run())
    }
  } finally {
    repeated.dispose()
    beams.dispose()
    rules?.dispose()
    decoder.dispose()
  }
}

function advance(search: BeamSearch, best: BeamCandidates, request: Request, ends: EndConditions): BeamMove {
  const stops = Array.from(best.tokens, (token, i) => ends.reached(request, [...search.tokensOf(best.beams[i]!), token]))
  return search.advance(best, stops)
}

/** What passes between host and device at each step, rows of a prompt side by side. */
class BeamTensors {
  /** int32 [B]: the rows that go on, and with which tokens */
  readonly parents: Tensor
  readonly tokens: Tensor
  /** float32 [B]: the sums of log-probabilities so far */
  readonly scores: Tensor
  /** float32, int32, int32 [prompts, width]: the best candidates, best first */
  readonly bestScores: Tensor
  readonly bestBeams: Tensor
  readonly bestTokens: Tensor
  readonly #numBeams: number

  constructor(device: Device, prompts: number, numBeams: number, width: number) {
    const of = (shape: number[], dtype: 'int32' | 'float32') => keep(Tensor.empty(device, shape, dtype, 'cache'))
    this.#numBeams = numBeams
    this.parents = of([prompts * numBeams], 'int32')
    this.tokens = of([prompts * numBeams], 'int32')
    this.scores = of([prompts * numBeams], 'float32')
    this.bestScores = of([prompts, width], 'float32')
    this.bestBeams = of([prompts, width], 'int32')
    this.bestTokens = of([prompts, width], 'int32')
  }

  async best(): Promise<BeamCandidates[]> {
    const read = [this.bestScores.data(), this.bestBeams.data(), this.bestTokens.data()]
    const [scores, beams, tokens] = await Promise.all(read)
    const [prompts, width] = this.bestScores.shape as [number, number]
    return Array.from({ length: prompts }, (_, prompt) => {
      const range = [prompt * width, (prompt + 1) * width] as const
      return { scores: scores!.subarray(...range), beams: beams!.subarray(...range), tokens: tokens!.subarray(...range) }
    })
  }

  write(moves: readonly BeamMove[]): void {
    this.parents.write(Int32Array.from(moves.flatMap(({ beams }, i) => beams.map((beam) => i * this.#numBeams + beam))))
    this.tokens.write(Int32Array.from(moves.flatMap(({ tokens }) => tokens)))
    this.scores.write(Float32Array.from(moves.flatMap(({ scores }) => scores)))
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
