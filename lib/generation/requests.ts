import type { Tokenizer } from '../data/tokenizer.js'
import { drawSeed } from '../env.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import type { Device } from '../tensor/device.js'
import { searchBeams } from './beam-loop.js'
import { bytesPerToken } from './cache.js'
import { streamSeed } from './choose.js'
import { newTokensFor, type ResolvedConfig } from './config.js'
import type { DecoderInput } from './decoder.js'
import { type Group, planGroups } from './plan.js'
import { encodePrompt, type Limits, needTokenizer, type Prompt } from './prompt.js'
import { EndConditions, type FinishReason, type Request, Sequence } from './sequence.js'
import { decodeAfter, StopStrings } from './text.js'
import { decodeTokens, type Growth } from './token-loop.js'

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

const MAX_ROWS = 64
const MAX_PROMPT_TOKENS = 8192
/** Bounds the activations of a prefill. */
const MAX_PREFILL_TOKENS = 2048
/** Keys and values that a group's new tokens may take if all sequences grow to their full length. */
const MAX_STEP_BYTES = 512 * 2 ** 20

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

export function planRequests({ config, network }: Call, requests: readonly Request[]): Group[] {
  const steps = Math.max(...requests.map(({ maxNewTokens }) => maxNewTokens))
  const affordable = Math.floor(MAX_STEP_BYTES / (steps * bytesPerToken(network.shape)))
  return planGroups(
    requests.map(({ inputIds }) => inputIds),
    rowsPerPromptOf(config),
    { rows: Math.min(MAX_ROWS, affordable), promptTokens: MAX_PROMPT_TOKENS, prefillTokens: MAX_PREFILL_TOKENS },
  )
}

function rowsPerPromptOf({ numBeams, numReturnSequences }: ResolvedConfig): number {
  return Math.max(numBeams, numReturnSequences)
}

function inputOf({ config, network, device, adapter }: Call, chunks: readonly (readonly Request[])[]): DecoderInput {
  return {
    network,
    device,
    adapter,
    chunks: chunks.map((requests) => requests.map(({ inputIds }) => inputIds)),
    rowsPerPrompt: rowsPerPromptOf(config),
    maxSteps: Math.max(...chunks.flat().map(({ maxNewTokens }) => maxNewTokens)),
    signal: config.signal,
  }
}

function endsOf({ config: { stopStrings, eosTokenId }, tokenizer }: Call): EndConditions {
  const stops = stopStrings.length > 0 ? new StopStrings(needTokenizer(tokenizer), stopStrings) : null
  return new EndConditions(eosTokenId, stops)
}

/** Starts the sequences of a group, those of a prompt side by side, and lets them grow. */
export function growSequences(call: Call, chunks: readonly (readonly Request[])[]) {
  const { config } = call
  const starts = chunks.flat().flatMap((request) =>
    Array.from({ length: rowsPerPromptOf(config) }, (_, rank) => {
      const seed = config.doSample ? streamSeed(config.seed ?? drawSeed(), request.inputIds, rank) : 0
      return { sequence: new Sequence(request), seed }
    }),
  )
  const sequences = starts.map(({ sequence }) => sequence)
  const seeds = Int32Array.from(starts, ({ seed }) => seed)
  const growths: AsyncGenerator<Growth[], void, undefined> = decodeTokens(
    inputOf(call, chunks),
    sequences,
    seeds,
    config,
    endsOf(call),
  )
  return { sequences, growths }
}

/** Answers for the prompts of a group, in its order. */
export async function generateGroup(call: Call, chunks: readonly (readonly Request[])[]): Promise<Generation[]> {
  const requests = chunks.flat()
  const { numBeams, numReturnSequences } = call.config
  if (numBeams > 1) {
    const found = await searchBeams(inputOf(call, chunks), requests, call.config, endsOf(call))
    return requests.map((request, i) => {
      const best = found[i]!.slice(0, numReturnSequences)
      return collect(best.map((h) => answer(call, request, h.tokenIds, h.stopped ? 'stop' : 'length', h.score)))
    })
  }
  const { sequences, growths } = growSequences(call, chunks)
  for await (const _ of growths);
  return requests.map((request, i) => {
    const own = sequences.slice(i * numReturnSequences, (i + 1) * numReturnSequences)
    const answers = own.map(({ tokenIds, finishReason, logProb }) =>
      answer(call, request, tokenIds, finishReason!, call.config.doSample ? logProb : undefined),
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
