import { noGrad } from '../autograd/tape.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'
import type { Adapter } from '../peft/adapter.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { PromptCache } from './cache.js'
import type { ResolvedConfig } from './config.js'
import { prefill } from './prefill.js'
import { encodePrompt, encodeText, type Limits, needTokenizer, type Prompt } from './prompt.js'
import { type AdmittedPrompt, PromptQueue, trieSize } from './prompt-queue.js'

export interface ScoreOptions {
  /** The adapter to use: a name, or null for the bare base. Default: the model's current one. */
  adapter?: string | null
  /** Aborts between two batches; the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

/** How likely a continuation is. */
export interface Score {
  /** Natural logarithm of the continuation's probability: the sum over its tokens. */
  logProb: number
  tokenIds: number[]
  /** Of each token, given the prompt and the tokens before it. */
  tokenLogProbs: number[]
}

const MAX_TOKENS = 2048

/** A prompt with one continuation. */
interface Case {
  prompt: Int32Array
  continuation: number[]
}

/** What a call works with. */
export interface ScoreCall {
  config: ResolvedConfig
  adapter: Adapter | null
  network: CausalLM
  device: Device
  tokenizer: Tokenizer | null
  limits: Limits
}

/** Scores continuations[i] behind prompts[i], on trees: a prompt is computed once, whatever follows it. */
export async function scoreContinuations(
  call: ScoreCall,
  prompts: readonly Prompt[],
  continuations: readonly (readonly string[])[],
): Promise<Score[][]> {
  if (prompts.length === 0) throw invalidArgument('score: there are no prompts')
  if (!Array.isArray(continuations) || continuations.length !== prompts.length) {
    throw invalidArgument(`score: expected a list of continuations for each of ${prompts.length} prompts`)
  }
  const wrong = continuations.findIndex((list) => !Array.isArray(list))
  if (wrong >= 0) throw invalidArgument(`score: expected a list of continuations for prompt ${wrong}`)
  const cases = prompts.map((prompt, i) => encodeCases(call, prompt, continuations[i]!))
  const flat = cases.flat()
  if (flat.length === 0) return cases.map(() => [])
  // The last token is only predicted, never read.
  const inputs = flat.map(({ prompt, continuation }) => Int32Array.from([...prompt, ...continuation.slice(0, -1)]))
  const scores = new Array<Score>(flat.length)
  const blocks = Math.min(trieSize(inputs), 2 * MAX_TOKENS + Math.max(...inputs.map(({ length }) => length)))
  const cache = new PromptCache(call.device, call.network.shape, blocks)
  const queue = new PromptQueue(inputs, cache)
  try {
    while (queue.waiting > 0) {
      call.config.signal?.throwIfAborted()
      const group = queue.admit(Number.POSITIVE_INFINITY, MAX_TOKENS)
      const members = group.map(({ index }) => flat[index]!)
      for (const [i, tokenLogProbs] of (await logProbsOf(call, { cache, keep: queue.waiting > 0 }, group, members)).entries()) {
        const logProb = tokenLogProbs.reduce((sum, value) => sum + value, 0)
        scores[group[i]!.index] = { logProb, tokenIds: members[i]!.continuation, tokenLogProbs }
      }
      for (const prompt of group) queue.release(prompt)
    }
  } finally {
    cache.dispose()
  }
  return divide(
    scores,
    cases.map((list) => list.length),
  )
}

function encodeCases({ tokenizer: found, limits }: ScoreCall, prompt: Prompt, continuations: readonly string[]): Case[] {
  const tokenizer = needTokenizer(found)
  const options = { forcedPrefix: '', continueFinalMessage: false }
  const { inputIds } = encodePrompt(tokenizer, prompt, options, limits)
  return continuations.map((text, i) => {
    if (typeof text !== 'string') throw invalidArgument(`score: continuation ${i} must be a string, got ${typeof text}`)
    const continuation = encodeContinuation(tokenizer, prompt, inputIds, text)
    if (continuation.length === 0) throw invalidArgument(`score: continuation ${i} is empty: it has no tokens`)
    const whole = { inputIds: [...inputIds, ...continuation.slice(0, -1)] }
    encodePrompt(tokenizer, whole, { ...options, needsRoom: false }, limits)
    return { prompt: inputIds, continuation }
  })
}

/** What the text adds when it is encoded together with a raw prompt, if that leaves the prompt's tokens as they are. */
function encodeContinuation(tokenizer: Tokenizer, prompt: Prompt, inputIds: Int32Array, text: string): number[] {
  if (typeof prompt === 'string') {
    const whole = encodeText(tokenizer, prompt + text)
    if (inputIds.every((id, i) => id === whole[i])) return whole.slice(inputIds.length)
  }
  return tokenizer.encode(text, { addSpecialTokens: false })
}

/** Log-probabilities of each case's continuation tokens. */
async function logProbsOf(
  { network, device, adapter }: ScoreCall,
  { cache, keep: keeps }: { cache: PromptCache; keep: boolean },
  group: readonly AdmittedPrompt[],
  cases: readonly Case[],
): Promise<number[][]> {
  // A token is predicted at the position before it.
  const wanted = cases.map(({ prompt, continuation }) => continuation.map((_, t) => prompt.length - 1 + t))
  let order: number[] = []
  const queue = () =>
    scope(() => {
      const { hidden, rows } = prefill({ network, device, adapter, cache, keep: keeps }, group, wanted)
      const pairs = cases.flatMap(({ continuation }, i) => continuation.map((target, t) => ({ row: rows[i]![t]!, target })))
      order = pairs.map((_, i) => i).sort((a, b) => pairs[a]!.row - pairs[b]!.row)
      const int32 = (data: ArrayLike<number>) => Tensor.from(device, Int32Array.from(data), [data.length], 'int32')
      const targetRows = int32(order.map((i) => pairs[i]!.row))
      const targetIds = int32(order.map((i) => pairs[i]!.target))
      return network.losses(hidden, targetRows, targetIds, adapter)
    })
  const losses = keep(withCallSite('score', () => noGrad(queue)))
  try {
    const values = (await losses.data()) as Float32Array
    const logProbs = new Array<number>(order.length)
    for (const [at, i] of order.entries()) logProbs[i] = -values[at]!
    return divide(
      logProbs,
      cases.map(({ continuation }) => continuation.length),
    )
  } finally {
    losses.dispose()
  }
}

/** Consecutive parts of the given lengths. */
function divide<T>(values: readonly T[], lengths: readonly number[]): T[][] {
  let at = 0
  return lengths.map((length) => {
    at += length
    return values.slice(at - length, at)
  })
}
