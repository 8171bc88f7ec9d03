import type { Tokenizer } from '../data/tokenizer.js'
import { drawSeed } from '../env.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import type { Device } from '../tensor/device.js'
import { searchBeams } from './beam-loop.js'
import { bytesPerToken } from './cache.js'
import { streamSeed } from './choose.js'
import { newTokensFor, type ResolvedConfig } from './config.js'
import type { LanesInput } from './lanes.js'
import { encodePrompt, type Limits, needTokenizer, type Prompt } from './prompt.js'
import { EndConditions, type FinishReason, type Request, Sequence } from './sequence.js'
import { decodeAfter, StopStrings } from './text.js'
import { decodeTokens, type GrowingJob, type Growth } from './token-loop.js'

/** One answer. */
export interface GeneratedSequence {
  /** The answer's text with its forced start, without special tokens; '' for a model without a tokenizer. */
  text: string
  /** The new tokens, the end token included. */
  tokenIds: number[]
  /** Beams: the hypothesis' score as in transformers. Sampling: the sum of the tokens' log-probabilities. */
  score?: number
  finishReason: FinishReason
}

export interface Generation extends GeneratedSequence {
  /** Further sequences (`numReturnSequences`), best first. */
  alternatives?: GeneratedSequence[]
}

/** What a call works with from its start to its end, whatever is changed or disposed of meanwhile. */
export interface Call {
  config: ResolvedConfig
  adapter: Adapter | null
  network: CausalLM
  device: Device
  tokenizer: Tokenizer | null
}

/** Keys and values that are held at once, unless `maxCacheTokens` says otherwise. */
const CACHE_BYTES = 768 * 2 ** 20

/** What a prompt must fit into. */
export function limitsOf({ network: { shape }, adapter }: Pick<Call, 'network' | 'adapter'>): Limits {
  const added = adapter?.tokenRows?.tokenIds ?? []
  const vocabSize = added.reduce((size, id) => Math.max(size, id + 1), shape.vocabSize)
  return { contextLength: shape.maxPositionEmbeddings, vocabSize }
}

export async function encodeRequests(call: Call, prompts: readonly Prompt[]): Promise<Request[]> {
  const { config, tokenizer } = call
  const limits = limitsOf(call)
  const requests: Request[] = []
  for (const prompt of prompts) {
    // Encoding is the one long thing that runs here: let others in between.
    if (requests.length % 8 === 7) await new Promise<void>((resolve) => setImmediate(resolve))
    const encoded = encodePrompt(tokenizer, prompt, config, limits)
    requests.push({ ...encoded, maxNewTokens: newTokensFor(config, encoded.inputIds.length, limits.contextLength) })
  }
  return requests
}

function rowsPerPromptOf({ numBeams, numReturnSequences }: ResolvedConfig): number {
  return Math.max(numBeams, numReturnSequences)
}

function inputOf({ config, network, device, adapter }: Call): LanesInput {
  return {
    network,
    device,
    adapter,
    signal: config.signal,
    width: rowsPerPromptOf(config),
    maxBatchSize: config.maxBatchSize,
    maxCacheTokens: config.maxCacheTokens ?? Math.floor(CACHE_BYTES / bytesPerToken(network.shape)),
  }
}

function endsOf({ config: { stopStrings, eosTokenId }, tokenizer }: Call): EndConditions {
  const stops = stopStrings.length > 0 ? new StopStrings(needTokenizer(tokenizer), stopStrings) : null
  return new EndConditions(eosTokenId, stops)
}

/** Lets sequences grow behind prompts: `jobs` has those of each, in the order of the prompts. */
export function growSequences(call: Call, requests: readonly Request[]) {
  const { config } = call
  const jobs = requests.map((request): GrowingJob => {
    const { inputIds, maxNewTokens } = request
    const ranks = Array.from({ length: rowsPerPromptOf(config) }, (_, rank) => rank)
    const seedOf = (rank: number) => (config.doSample ? streamSeed(config.seed ?? drawSeed(), inputIds, rank) : 0)
    const sequences = ranks.map(() => new Sequence(request))
    return { inputIds, maxNewTokens, sequences, seeds: Int32Array.from(ranks, seedOf) }
  })
  const growths: AsyncGenerator<Growth[], void, undefined> = decodeTokens(inputOf(call), jobs, config, endsOf(call))
  return { jobs, growths }
}

/** Answers for prompts, in their order. */
export async function generateAll(call: Call, requests: readonly Request[]): Promise<Generation[]> {
  const { numBeams, numReturnSequences, doSample } = call.config
  if (numBeams > 1) {
    const found = await searchBeams(inputOf(call), requests, call.config, endsOf(call))
    return requests.map((request, i) => {
      const best = found[i]!.slice(0, numReturnSequences)
      return collect(best.map((h) => answer(call, request, h.tokenIds, h.stopped ? 'stop' : 'length', h.score)))
    })
  }
  const { jobs, growths } = growSequences(call, requests)
  for await (const _ of growths);
  return jobs.map(({ sequences }) => {
    const answers = sequences.map(({ request, tokenIds, finishReason, logProb }) =>
      answer(call, request, tokenIds, finishReason!, doSample ? logProb : undefined),
    )
    return collect(answers.sort((a, b) => (b.score ?? 0) - (a.score ?? 0)))
  })
}

function answer(
  { tokenizer }: Call,
  request: Request,
  tokenIds: number[],
  finishReason: FinishReason,
  score: number | undefined,
): GeneratedSequence {
  const text = tokenizer ? request.forcedPrefix + decodeAfter(tokenizer, request.context, tokenIds) : ''
  return { text, tokenIds, ...(score === undefined ? {} : { score }), finishReason }
}

function collect([best, ...alternatives]: GeneratedSequence[]): Generation {
  return alternatives.length > 0 ? { ...best!, alternatives } : best!
}
