import { withCallSite } from '../tensor/call-site.js'
import { scope } from '../tensor/scope.js'
import type { Tensor } from '../tensor/tensor.js'
import { type Chosen, TokenChooser } from './choose.js'
import type { ResolvedConfig } from './config.js'
import { type Job, Lanes, type LanesInput, spreadRows } from './lanes.js'
import { RepeatedStep } from './repeated-step.js'
import { LogitsRules } from './rules.js'
import type { EndConditions, Sequence } from './sequence.js'

/** A token that a sequence has grown by. */
export interface Growth {
  sequence: Sequence
  tokenId: number
}

/** A prompt with the sequences that are to grow behind it. */
export interface GrowingJob extends Job {
  readonly sequences: readonly Sequence[]
  /** Of the sequences' random streams. */
  readonly seeds: Int32Array
}

/**
 * Greedy search and sampling. Each round yields the tokens that sequences have grown by. The device is one step ahead: it computes the
 * next step from tokens that are still on it while their ids are read, so what a sequence gets behind its end is dropped.
 */
export async function* decodeTokens(
  input: LanesInput,
  jobs: readonly GrowingJob[],
  config: ResolvedConfig,
  ends: EndConditions,
): AsyncGenerator<Growth[], void, undefined> {
  const { device } = input
  const lanes = new Lanes(input, jobs)
  const chooser = new TokenChooser(device, config, lanes.rows)
  let rules = null as LogitsRules | null
  const repeated = new RepeatedStep(device, () =>
    scope(() => {
      const { tokens } = chooser.chosen
      rules!.append(tokens)
      const logits = lanes.decoder.forward(tokens)
      rules!.apply(logits)
      chooser.choose(logits)
    }),
  )
  try {
    while (true) {
      if (lanes.isDue) {
        await lanes.admit((begun, logits) => {
          rules ??= new LogitsRules(device, config, { rows: lanes.rows, longest: lanes.longest, vocabSize: logits.shape[1]! })
          begin(lanes, begun, logits, rules, chooser)
        })
      }
      const live = lanes.live
      if (live.length === 0) return
      const reading = read(chooser.chosen)
      // A failure of what is queued in between is the reading's failure too.
      reading.catch(() => {})
      if (live.some(({ job }) => job.sequences.some(goesOn))) {
        const grown = await lanes.decoder.nextStep()
        const changed = rules!.prepare(lanes.rows, (row) => lanes.decoder.stepsOf(row))
        if (grown || changed) repeated.changed()
        withCallSite('generate', () => repeated.run())
      }
      const { ids, logProbs } = await reading
      const growths = live.flatMap(({ lane, job }) =>
        job.sequences.flatMap((sequence, i) => {
          const row = lane * lanes.width + i
          return grow(sequence, ids[row]!, logProbs?.[row] ?? 0, ends)
        }),
      )
      config.signal?.throwIfAborted()
      yield growths
      lanes.finish(live.filter(({ job }) => job.sequences.every(isFinished)).map(({ lane }) => lane))
      const rows = lanes.shrink()
      if (!rows) continue
      repeated.changed()
      chooser.shrink(rows)
      rules!.shrink(rows)
    }
  } finally {
    repeated.dispose()
    rules?.dispose()
    chooser.dispose()
    lanes.dispose()
  }
}

/** Queues the first choice for the sequences of the lanes that begin; `logits` [lanes, V] are those after their prompts. */
function begin(
  lanes: Lanes<GrowingJob>,
  begun: readonly number[],
  logits: Tensor,
  rules: LogitsRules,
  chooser: TokenChooser,
): void {
  const jobs = begun.map((lane) => lanes.jobOf(lane))
  rules.applyToPrompts(
    logits,
    jobs.map(({ inputIds }) => inputIds),
  )
  const perRow = spreadRows(
    logits,
    begun.flatMap((_, i) => new Array<number>(lanes.width).fill(i)),
  )
  const seeds = Int32Array.from(jobs.flatMap((job) => [...job.seeds]))
  chooser.start(
    begun.flatMap((lane) => lanes.rowsOf(lane)),
    perRow,
    seeds,
  )
  for (const [i, lane] of begun.entries()) for (const row of lanes.rowsOf(lane)) rules.start(row, jobs[i]!.inputIds)
}

const isFinished = ({ finishReason }: Sequence) => finishReason !== null

/** Whether a sequence needs a token beyond the one that is being read. */
const goesOn = (sequence: Sequence) => !isFinished(sequence) && sequence.tokenIds.length + 1 < sequence.request.maxNewTokens

function grow(sequence: Sequence, tokenId: number, logProb: number, ends: EndConditions): Growth[] {
  if (isFinished(sequence)) return []
  sequence.append(tokenId, ends)
  sequence.logProb += logProb
  return [{ sequence, tokenId }]
}

async function read({ tokens, logProbs }: Chosen): Promise<{ ids: ArrayLike<number>; logProbs: ArrayLike<number> | null }> {
  const [ids, values] = await Promise.all([tokens.data(), logProbs?.data() ?? null])
  return { ids: ids as Int32Array, logProbs: values as Float32Array | null }
}
