// Compares quantune with PyTorch, transformers and PEFT on the SQuAD workflow. FOLDER holds what the reference run recorded: adapters
// before and after, the token ids of every step, losses, answers (peer-files.ts says how).
//
//   peer generation FOLDER --model DIR            greedy and beam outputs of the untouched model, token for token
//   peer training FOLDER --model DIR              the first 20 steps from the same adapter on the same tokens: loss per step
//   peer run FOLDER --model DIR --data DIR        the whole run again, then the exact match on all questions of dev.json
//   peer answers FOLDER --csv FILE                an evaluation of any run of ours (evaluate's CSV) against the reference's answers
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import {
  AdamW,
  Batch,
  type EvaluationRow,
  EvaluationWriter,
  Generator,
  Model,
  NO_ANSWER,
  readEvaluation,
  squadMetrics,
  summarize,
} from '../../lib/index.js'
import { configure } from './config.js'
import { readSquad, squadFile, toChat } from './data.js'
import { difference, readStrictly } from './peer-answers.js'
import { type PeerCase, type PeerStep, readPeer, readPeerAnswers, readPeerGenerations } from './peer-files.js'
import { openBar } from './progress.js'
import { renderTable } from './table.js'

/** Two ways of summing may part where the two best candidates are closer than this. */
const TIE = 1e-5
const LOSS_TOLERANCE = 1e-3
const MAX_NEW_TOKENS = 48
const BATCH = 64

const { config, flags, positionals } = configure('peer generation|training|run|answers FOLDER [flags]', {
  steps: { type: 'number', path: null, help: 'steps to repeat (default: 20, or all for run)' },
  adapter: { type: 'string', path: null, help: 'run: evaluate this adapter instead of training one' },
  csv: { type: 'string', path: null, help: 'answers: the evaluation to compare' },
})
const [check, folder] = positionals
if (!folder) throw new Error('name the folder of the reference run; see --help')
const checks: Record<string, (folder: string) => Promise<boolean>> = { generation, training, run, answers }
const chosen = checks[check ?? '']
if (!chosen) throw new Error(`the check must be one of ${Object.keys(checks).join(', ')}`)
process.exitCode = (await chosen(folder)) ? 0 : 1

/** The reference is float32 and not quantized. */
function load(): Promise<Model> {
  return Model.fromPretrained(config.model, { device: config.load.device ?? 'auto', dtype: 'float32', quantization: 'none' })
}

async function generation(folder: string): Promise<boolean> {
  const cases = await readPeerGenerations(folder)
  const model = await load()
  const generator = new Generator(model)
  const prompts = cases.map(({ inputIds }) => ({ inputIds }))
  const { greedy, beams } = cases[0]!
  const ours = await generator.generate(prompts, { doSample: false, maxNewTokens: greedy.maxNewTokens })
  const best = await generator.generate(prompts, { maxNewTokens: beams.maxNewTokens, numBeams: beams.numBeams })
  let passed = 0
  for (const [i, reference] of cases.entries()) {
    const gap = await greedyGap(model, reference, ours[i]!.tokenIds)
    const scoreGap = Math.abs(best[i]!.score! - reference.beams.score)
    const sameBeams = best[i]!.tokenIds.join() === reference.beams.tokenIds.join()
    const fine = (gap === null || gap < TIE) && (sameBeams ? scoreGap < 1e-4 : scoreGap < TIE)
    const greedyText = gap === null ? 'equal' : `differs where the two best logits are ${gap.toExponential(2)} apart`
    const beamText = `${sameBeams ? 'equal' : 'differs'}, scores ${scoreGap.toExponential(2)} apart`
    console.log(`${fine ? 'ok  ' : 'MISS'} ${reference.id}  greedy ${greedyText}  ${beams.numBeams} beams ${beamText}`)
    passed += fine ? 1 : 0
  }
  console.log(`${passed} of ${cases.length} prompts: token for token (ties below ${TIE})`)
  await model.dispose()
  return passed === cases.length
}

/** null for equal tokens; else how far the two logits are apart at the first difference. */
async function greedyGap(model: Model, { inputIds, greedy }: PeerCase, ours: readonly number[]): Promise<number | null> {
  const at = greedy.tokenIds.findIndex((id, i) => id !== ours[i])
  if (at < 0) return ours.length === greedy.tokenIds.length ? null : Number.POSITIVE_INFINITY
  const batch = Batch.pack([{ inputIds: [...inputIds, ...greedy.tokenIds.slice(0, at)] }])
  const result = model.forward(batch, { adapter: null, outputRows: Int32Array.of(batch.numTokens - 1) })
  const logits = result.logits()
  const values = (await logits.data()) as Float32Array
  logits.dispose()
  result.dispose()
  return Math.abs(values[greedy.tokenIds[at]!]! - values[ours[at] ?? 0]!)
}

async function training(folder: string): Promise<boolean> {
  const model = await load()
  const { worst } = await repeat(model, folder, Number(flags.steps ?? 20), true)
  console.log(`largest deviation of a step's loss: ${worst.toExponential(2)} relative (${LOSS_TOLERANCE} allowed)`)
  await model.dispose()
  return worst < LOSS_TOLERANCE
}

/** Repeats the reference's steps: its first adapter, samples, order and learning rates; AdamW without decay, clipping at 1. */
async function repeat(model: Model, folder: string, count: number, print: boolean): Promise<{ worst: number }> {
  await model.loadAdapter(join(folder, 'adapter_initial'), { name: 'peer', trainable: true })
  const optimizer = new AdamW(model.trainableParameters('peer'), { weightDecay: 0, maxGradNorm: 1 })
  const { steps, losses } = await readPeer(folder)
  const total = Math.min(count, steps.length)
  const bar = openBar('training', total)
  let worst = 0
  for (const [i, step] of steps.slice(0, total).entries()) {
    const loss = await trainStep(model, optimizer, step)
    const deviation = Math.abs(loss - losses[i]!) / losses[i]!
    worst = Math.max(worst, deviation)
    if (print)
      console.log(
        `step ${step.step}: loss ${loss.toFixed(5)}, reference ${losses[i]!.toFixed(4)}, ${deviation.toExponential(1)} relative`,
      )
    bar.update(i + 1, `loss ${loss.toFixed(4)}`)
  }
  bar.stop()
  optimizer.dispose()
  return { worst }
}

async function trainStep(model: Model, optimizer: AdamW, { learningRate, samples }: PeerStep): Promise<number> {
  const sequences = samples.map(({ inputIds, labelsFrom }) => ({
    inputIds,
    labels: inputIds.map((id, t) => (t < labelsFrom ? -100 : id)),
  }))
  const { loss } = model.forward(Batch.pack(sequences, { trimUnused: true }), { adapter: 'peer' })
  loss!.backward()
  optimizer.learningRate = learningRate
  await optimizer.step()
  optimizer.zeroGrad()
  const value = await loss!.item()
  loss!.dispose()
  return value
}

async function run(folder: string): Promise<boolean> {
  const model = await load()
  const out = join(config.output, 'peer')
  await mkdir(out, { recursive: true })
  if (flags.adapter) await model.loadAdapter(String(flags.adapter), { name: 'peer' })
  else {
    const { worst } = await repeat(model, folder, Number(flags.steps ?? Number.POSITIVE_INFINITY), false)
    console.log(`largest deviation of a step's loss: ${worst.toExponential(2)} relative`)
    await model.saveAdapter(join(out, 'adapter'), 'peer')
    await rm(join(out, 'answers.csv'), { force: true })
    console.log(`adapter: ${join(out, 'adapter')} (if answering is interrupted, go on with --adapter)`)
  }
  const rows = await answerAll(model, join(out, 'answers.csv'))
  await model.dispose()
  return compare(folder, rows)
}

async function answers(folder: string): Promise<boolean> {
  if (!flags.csv) throw new Error('answers needs --csv FILE; see --help')
  return compare(folder, await readEvaluation(String(flags.csv)))
}

/** Prints both tables and the paired difference; whether ours is not lower by more than two standard errors. */
async function compare(folder: string, rows: EvaluationRow[]): Promise<boolean> {
  const theirs = await readPeerAnswers(folder, rows)
  console.log(
    renderTable([
      ['quantune', summarize(rows)],
      ['reference', summarize(theirs)],
    ]),
  )
  console.log(
    `SQuAD's normalised exact match: ${squadMetrics(rows).exact.toFixed(2)} and ${squadMetrics(theirs).exact.toFixed(2)}`,
  )
  const { mean, error } = difference(rows, theirs)
  const fine = mean >= -2 * error
  console.log(
    `exact match, paired: ${(100 * mean).toFixed(2)} points, standard error ${(100 * error).toFixed(2)}: ${fine ? 'not lower' : 'LOWER'} by more than two`,
  )
  return fine
}

/** Greedy answers to every question of dev.json with the single-turn prompt, no forced start; goes on where it was interrupted. */
async function answerAll(model: Model, path: string) {
  const writer = await EvaluationWriter.open(path)
  const questions = (await readSquad(squadFile(config.data, 'dev'))).flat()
  const rows = [...writer.done]
  const done = new Set(rows.map(({ id }) => id))
  const pending = questions.filter(({ id }) => !done.has(id))
  const generator = new Generator(model)
  const bar = openBar('answering', questions.length, done.size)
  for (let at = 0; at < pending.length; at += BATCH) {
    const batch = pending.slice(at, at + BATCH)
    const chats = batch.map((question) => toChat(question, { turns: 'single', reasoning: '' }).slice(0, -1))
    const prompts = chats.map((messages) => ({ messages }))
    const generations = await generator.generate(prompts, { adapter: 'peer', doSample: false, maxNewTokens: MAX_NEW_TOKENS })
    const answered = batch.map(({ id, question, answers }, i) => {
      const answer = readStrictly(generations[i]!.text)
      const exactMatch = answer !== null && (answers.includes(answer) || (answers[0] === NO_ANSWER && answer === NO_ANSWER))
      return { id, prompt: question, answers, answer, response: generations[i]!.text, exactMatch }
    })
    await writer.append(answered)
    rows.push(...answered)
    bar.update(rows.length)
  }
  bar.stop()
  await writer.close()
  return rows
}
