import { invalidArgument } from '../errors.js'
import { withCallSite } from '../tensor/call-site.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { type BeamCandidates, BeamSearch, candidatesPerStep, type Hypothesis } from './beam-search.js'
import type { ResolvedConfig } from './config.js'
import { type DecoderInput, GroupDecoder } from './decoder.js'
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
  const candidates = candidatesPerStep(numBeams, config.eosTokenId.length)
  const prompts = requests.flatMap(({ inputIds }) => new Array<Int32Array>(numBeams).fill(inputIds))
  let rules: LogitsRules | null = null
  let active = requests.map((_, i) => i)
  let logits: Tensor | null = null
  try {
    logits = await decoder.prefill(() => passed(input))
    checkCandidates(candidates, numBeams, logits.shape[1]!)
    rules = new LogitsRules(device, config, prompts, maxSteps, logits.shape[1]!)
    // The first step has one beam a prompt: the others would be the same.
    let scores: number[] = active.map(() => 0)
    for (let step = 0; ; step++) {
      rules.apply(log(logits), step, step === 0 ? numBeams : 1)
      const best = await topCandidates(logits, scores, active.length, candidates)
      logits.dispose()
      logits = null
      input.signal?.throwIfAborted()
      const moves = active.map((prompt, i) => {
        const search = searches[prompt]!
        const stops = Array.from(best[i]!.tokens, (token, c) =>
          ends.reached(requests[prompt]!, [...search.tokensOf(best[i]!.beams[c]!), token]),
        )
        return search.advance(best[i]!, stops)
      })
      const going = moves.flatMap((move, i) => (searches[active[i]!]!.done ? [] : [{ move, row: i * numBeams }]))
      if (going.length === 0) break
      active = active.filter((prompt) => !searches[prompt]!.done)
      const parents = going.flatMap(({ move, row }) => move.beams.map((beam) => row + beam))
      scores = going.flatMap(({ move }) => move.scores)
      decoder.reorder(parents)
      rules.reorder(parents)
      await decoder.ready()
      const chosen = Int32Array.from(going.flatMap(({ move }) => move.tokens))
      logits = withCallSite('generate', () =>
        scope(() => {
          const tokens = Tensor.from(device, chosen, [chosen.length], 'int32')
          rules!.append(tokens)
          return decoder.forward(tokens)
        }),
      )
      keep(logits)
    }
    return searches.map((search) => search.hypotheses)
  } finally {
    logits?.dispose()
    rules?.dispose()
    decoder.dispose()
  }
}

function log(logits: Tensor): Tensor {
  logits.device.ops.log_softmax(logits, logits)
  return logits
}

/** The best candidates of each prompt: those of logProbs [prompts * n, V] plus the beams' scores. */
async function topCandidates(
  logProbs: Tensor,
  beamScores: readonly number[],
  prompts: number,
  candidates: number,
): Promise<BeamCandidates[]> {
  const { device } = logProbs
  // What is read is copied when the queue passes it, so the tensors may go at once.
  let reading: Promise<unknown[]> | undefined
  scope(() => {
    const scores = Tensor.empty(device, [prompts, candidates], 'float32')
    const beams = Tensor.empty(device, [prompts, candidates], 'int32')
    const tokens = Tensor.empty(device, [prompts, candidates], 'int32')
    const base = Tensor.from(device, Float32Array.from(beamScores), [beamScores.length], 'float32')
    device.ops.beam_topk(scores, beams, tokens, logProbs, base)
    reading = Promise.all([scores.data(), beams.data(), tokens.data()])
  })
  const [scores, beams, tokens] = (await reading) as [Float32Array, Int32Array, Int32Array]
  return Array.from({ length: prompts }, (_, prompt) => {
    const range = [prompt * candidates, (prompt + 1) * candidates] as const
    return { scores: scores.subarray(...range), beams: beams.subarray(...range), tokens: tokens.subarray(...range) }
  })
}

function checkCandidates(candidates: number, numBeams: number, vocabSize: number): void {
  if (candidates <= vocabSize) return
  throw invalidArgument(
    `GenerationConfig.numBeams: ${numBeams} beams need ${candidates} candidates a step, but the model has only ${vocabSize} tokens`,
    { parameter: 'GenerationConfig.numBeams' },
  )
}
