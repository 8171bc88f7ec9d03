import { withCallSite } from '../tensor/call-site.js'
import { keep, scope } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'
import { type Chosen, TokenChooser } from './choose.js'
import type { ResolvedConfig } from './config.js'
import { type DecoderInput, GroupDecoder } from './decoder.js'
import { gatherRows } from './rows.js'
import { LogitsRules } from './rules.js'
import type { EndConditions, Sequence } from './sequence.js'

/** A token that a sequence has grown by. */
export interface Growth {
  sequence: Sequence
  tokenId: number
}

/** Rows that have finished may make up this share of a step before the batch is made smaller. */
const IDLE_SHARE = 1 / 4

/**
 * Greedy search and sampling for a group. Each round yields the tokens that its sequences have grown by. The device is one step
 * ahead: it computes the next step from tokens that are still on it while their ids are read, so what a sequence gets behind its end
 * is dropped.
 *
 * @param sequences of the prompts in their order, those of a prompt side by side
 * @param seeds of the sequences' random streams
 */
export async function* decodeTokens(
  input: DecoderInput,
  sequences: readonly Sequence[],
  seeds: Int32Array,
  config: ResolvedConfig,
  ends: EndConditions,
): AsyncGenerator<Growth[], void, undefined> {
  const { device, maxSteps, rowsPerPrompt } = input
  const decoder = new GroupDecoder(input)
  const chooser = new TokenChooser(device, config, seeds)
  const prompts = sequences.map(({ request }) => request.inputIds)
  let rules = null as LogitsRules | null
  let chosen = null as Chosen | null
  let next = null as Chosen | null
  const choose = (step: number, logits: () => Tensor): Chosen =>
    withCallSite('generate', () =>
      own(
        scope(() => {
          const scores = logits()
          rules ??= new LogitsRules(device, config, prompts, maxSteps, scores.shape[1]!)
          rules.apply(scores, step)
          const result = chooser.choose(scores)
          rules.append(result.tokens)
          return result
        }),
      ),
    )
  try {
    const perPrompt = await decoder.prefill(() => passed(input))
    const promptOf = sequences.map((_, row) => Math.floor(row / rowsPerPrompt))
    const { first } = gatherRows({ first: perPrompt }, promptOf)
    perPrompt.dispose()
    chosen = choose(0, () => first)
    first.dispose()
    let live = [...sequences]
    for (let step = 1; ; step++) {
      const reading = read(chosen)
      // A failure of what is queued in between is the reading's failure too.
      reading.catch(() => {})
      if (step < maxSteps) {
        await decoder.ready()
        const { tokens } = chosen
        next = choose(step, () => decoder.forward(tokens))
      }
      const growths = grow(live, await reading, ends)
      release(chosen)
      chosen = next
      next = null
      config.signal?.throwIfAborted()
      yield growths
      const going = live.flatMap((sequence, row) => (sequence.finishReason === null ? [row] : []))
      if (going.length === 0 || !chosen) return
      if (live.length - going.length >= live.length * IDLE_SHARE) {
        live = going.map((row) => live[row]!)
        decoder.reorder(going)
        chooser.reorder(going)
        rules!.reorder(going)
        const former = chosen
        chosen = rowsOf(former, going)
        release(former)
      }
    }
  } finally {
    release(chosen)
    release(next)
    rules?.dispose()
    chooser.dispose()
    decoder.dispose()
  }
}

/** Waits for a pass of a long prefill, so that it can be aborted. */
export async function passed({ device, signal }: DecoderInput): Promise<void> {
  await device.settled()
  signal?.throwIfAborted()
}

function own(chosen: Chosen): Chosen {
  keep(chosen.tokens)
  if (chosen.logProbs) keep(chosen.logProbs)
  return chosen
}

function release(chosen: Chosen | null): void {
  chosen?.tokens.dispose()
  chosen?.logProbs?.dispose()
}

function rowsOf({ tokens, logProbs }: Chosen, rows: readonly number[]): Chosen {
  return logProbs ? gatherRows({ tokens, logProbs }, rows) : { ...gatherRows({ tokens }, rows), logProbs }
}

async function read({ tokens, logProbs }: Chosen): Promise<{ ids: ArrayLike<number>; logProbs: ArrayLike<number> | null }> {
  const [ids, values] = await Promise.all([tokens.data(), logProbs?.data() ?? null])
  return { ids: ids as Int32Array, logProbs: values as Float32Array | null }
}

function grow(
  live: readonly Sequence[],
  { ids, logProbs }: { ids: ArrayLike<number>; logProbs: ArrayLike<number> | null },
  ends: EndConditions,
): Growth[] {
  return live.flatMap((sequence, row) => {
    if (sequence.finishReason !== null) return []
    sequence.append(ids[row]!, ends)
    sequence.logProb += logProbs?.[row] ?? 0
    return [{ sequence, tokenId: ids[row]! }]
  })
}
