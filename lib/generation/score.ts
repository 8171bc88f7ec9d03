import { noGrad } from '../autograd/tape.js'
import { Batch } from '../data/batch.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'
import { attendSegments } from '../nn/attention.js'
import type { Adapter } from '../peft/adapter.js'
import { withCallSite } from '../tensor/call-site.js'
import type { Device } from '../tensor/device.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { ResolvedConfig } from './config.js'
import { planGroups } from './plan.js'
import { encodePrompt, encodeText, type Limits, needTokenizer, type Prompt } from './prompt.js'

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
  const cases = prompts.map((prompt, i) => encodeCases(call, prompt, continuations[i]!))
  const flat = cases.flat()
  // The last token is only predicted, never read.
  const inputs = flat.map(({ prompt, continuation }) => Int32Array.from([...prompt, ...continuation.slice(0, -1)]))
  const plan = planGroups(inputs, 1, {
    rows: Number.POSITIVE_INFINITY,
    promptTokens: MAX_TOKENS,
    prefillTokens: MAX_TOKENS,
  })
  const scores = new Array<Score>(flat.length)
  for (const { chunks } of plan) {
    call.config.signal?.throwIfAborted()
    const members = chunks.flat()
    const group = members.map((index) => flat[index]!)
    const logProbs = await logProbsOf(
      call,
      members.map((index) => inputs[index]!),
      group,
    )
    for (const [i, index] of members.entries()) {
      const tokenLogProbs = logProbs[i]!
      const logProb = tokenLogProbs.reduce((sum, value) => sum + value, 0)
      scores[index] = { logProb, tokenIds: flat[index]!.continuation, tokenLogProbs }
    }
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
  inputs: readonly Int32Array[],
  cases: readonly Case[],
): Promise<number[][]> {
  const batch = Batch.pack(inputs.map((inputIds) => ({ inputIds })))
  const pairs = cases.flatMap(({ prompt, continuation }, sample) =>
    continuation.map((target, t) => ({ row: batch.sampleRows[sample]![prompt.length - 1 + t]!, target })),
  )
  const order = pairs.map((_, i) => i).sort((a, b) => pairs[a]!.row - pairs[b]!.row)
  const rows = Int32Array.from(new Set(order.map((i) => pairs[i]!.row)))
  const indexOf = new Map(Array.from(rows, (row, i) => [row, i]))
  const queue = () =>
    scope(() => {
      const int32 = (data: ArrayLike<number>) => Tensor.from(device, Int32Array.from(data), [data.length], 'int32')
      const outputRows = int32(rows)
      const hidden = network.hidden({
        inputIds: int32(batch.inputIds),
        positions: int32(batch.positions),
        attend: attendSegments(int32(batch.end), outputRows),
        outputRows,
        adapter,
      })
      const targetRows = int32(order.map((i) => indexOf.get(pairs[i]!.row)!))
      const targetIds = int32(order.map((i) => pairs[i]!.target))
      return network.losses(hidden, targetRows, targetIds, adapter)
    })
  const losses = keep(withCallSite('score', () => noGrad(queue)))
  try {
    const values = (await losses.data()) as Float32Array
    const logProbs = new Array<number>(pairs.length)
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
