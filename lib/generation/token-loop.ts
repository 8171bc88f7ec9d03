import { withCallSite } from '../tensor/call-site.js'
import { scope } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'
import { type Chosen, TokenChooser } from './choose.js'
import type { ResolvedConfig } from './config.js'
import { type DecoderInput, GroupDecoder } from './decoder.js'
import { RepeatedStep } from './repeated-step.js'
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
  let chosen = chooser.room(sequences.length)
  let rules: LogitsRules | null = null
  let step = 0
  const choose = (logits: Tensor) => {
    rules!.apply(logits, step)
    chooser.choose(chosen, logits)
    rules!.append(chosen.tokens)
  }
  const repeated = new RepeatedStep(device, () => scope(() => choose(decoder.forward(chosen.tokens))))
  try {
    const perPrompt = await decoder.prefill(() => passed(input))
    const promptOf = sequences.map((_, row) => Math.floor(row / rowsPerPrompt))
    const { logits } = gatherRows({ logits: perPrompt }, promptOf)
    perPrompt.dispose()
    rules = new LogitsRules(device, config, prompts, maxSteps, logits.shape[1]!)
    withCallSite('generate', () => choose(logits))
    logits.dispose()
    let live = [...sequences]
    while (true) {
      const reading = read(chosen)
      // A failure of what is queued in between is the reading's failure too.
      reading.catch(() => {})
      const goesOn = ++step < maxSteps
      if (goesOn) {
        const grown = await decoder.nextStep()
        if (grown || rules.changesAt(step)) repeated.changed()
        withCallSite('generate', () => repeated.run())
      }
      const growths = grow(live, await reading, ends)
      config.signal?.throwIfAborted()
      yield growths
      const going = live.flatMap((sequence, row) => (sequence.finishReason === null ? [row] : []))
      if (going.length === 0 || !goesOn) return
      if (live.length - going.length >= live.length * IDLE_SHARE) {
        live = going.map((row) => live[row]!)
        repeated.changed()
        decoder.reorder(going)
        chooser.reorder(going)
        rules.reorder(going)
        const former = chosen
        chosen = rowsOf(former, going)
        release(former)
      }
    }
  } finally {
    repeated.dispose()
    release(chosen)
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

function release({ tokens, logProbs }: Chosen): void {
  tokens.dispose()
  logProbs?.dispose()
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
