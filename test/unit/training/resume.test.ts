import { spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { TrainingArguments } from '../../../lib/training/arguments.js'
import { Trainer, type TrainerOptions, type TrainOptions } from '../../../lib/training/trainer.js'
import { BigramModel, collator, type Example, examples, readLog } from './bigram.js'

const base: TrainingArguments = {
  disableProgress: true,
  learningRate: 0.05,
  warmupSteps: 0.2,
  lrSchedulerType: 'cosine',
  weightDecay: 0.01,
  perDeviceTrainBatchSize: 2,
  gradientAccumulationSteps: 2,
  maxSteps: 11,
  loggingSteps: 3,
  saveSteps: 4,
  seed: 7,
}

async function open(outputDir: string, options: Partial<TrainerOptions<Example>> = {}) {
  const bigram = await BigramModel.open({ dropout: 0.3 })
  const args = { ...base, outputDir, ...options.args }
  const trainer = new Trainer<Example>({ model: bigram.asModel, collator, trainDataset: examples(18), ...options, args })
  return { bigram, trainer }
}

async function train(outputDir: string, options: Partial<TrainerOptions<Example>> = {}, how: TrainOptions = {}) {
  const { bigram, trainer } = await open(outputDir, options)
  const output = await trainer.train(how)
  return { output, weights: (await bigram.head.data()) as Float32Array, log: await readLog(outputDir) }
}

/** All bytes that a checkpoint holds, but for the clock and the folder. */
function contents(checkpoint: string) {
  const state = JSON.parse(readFileSync(join(checkpoint, 'trainer_state.json'), 'utf8'), (key, value) =>
    /per_second|runtime|started_at|best_model_checkpoint/.test(key) ? undefined : value,
  )
  const files = readdirSync(checkpoint).filter((name) => name.endsWith('.safetensors'))
  return { state, files: files.map((name) => [name, readFileSync(join(checkpoint, name)).toString('hex')]) }
}

async function* stream() {
  yield* examples(18)
}

t.test('a resumed training repeats the uninterrupted one bit for bit', async (t) => {
  const kinds: [string, Partial<TrainerOptions<Example>>][] = [
    ['random', {}],
    ['group_by_length', { args: { trainSamplingStrategy: 'group_by_length' } }],
    ['iterable', { trainDataset: stream }],
    ['tokens', { args: { maxTokensPerBatch: 12 } }],
    ['evaluation', { evalDataset: examples(5), args: { evalStrategy: 'steps', evalSteps: 2 } }],
  ]
  for (const [kind, options] of kinds) {
    const dir = t.testdir({ whole: {}, parts: {} })
    const whole = await train(join(dir, 'whole'), options)
    const parts = join(dir, 'parts')
    for (const stopAt of [2, 5, 9]) {
      const { trainer } = await open(parts, options)
      trainer.on('step', ({ step }) => {
        if (step === stopAt) trainer.stop()
      })
      const stopped = await trainer.train({ resumeFromCheckpoint: 'auto' })
      t.match(stopped, { stopReason: 'stopped', globalStep: stopAt, lastCheckpoint: join(parts, `checkpoint-${stopAt}`) })
    }
    const resumed = await train(parts, options, { resumeFromCheckpoint: true })
    t.same(resumed.weights, whole.weights, `${kind}: weights`)
    t.same(resumed.log, whole.log, `${kind}: log`)
    t.equal(resumed.output.trainLoss, whole.output.trainLoss, `${kind}: mean loss`)
    t.same(contents(join(parts, 'checkpoint-11')), contents(join(dir, 'whole', 'checkpoint-11')), `${kind}: checkpoint`)
  }
})

t.test('seeds and steps change what dropout draws', async (t) => {
  const one = await train(t.testdir({}))
  const other = await train(join(t.testdirName, 'other'), { args: { seed: 8, trainSamplingStrategy: 'sequential' } })
  t.notSame(one.weights, other.weights)
})

t.test('the best checkpoint is found although the folder was moved', async (t) => {
  const dir = t.testdir()
  const values = [0.5, 0.1, 0.3]
  const options: Partial<TrainerOptions<Example>> = {
    computeMetrics: ({ step }) => ({ loss: values[step / 2 - 1]! }),
    args: { maxSteps: 6, evalStrategy: 'steps', evalSteps: 2, saveSteps: 2, loadBestModelAtEnd: true },
  }
  const { trainer } = await open(join(dir, 'before'), options)
  trainer.on('save', ({ step }) => step === 4 && trainer.stop())
  await trainer.train()
  const best = readFileSync(join(dir, 'before', 'checkpoint-4', 'adapter_model.safetensors')).subarray(-11 * 6 * 4)
  renameSync(join(dir, 'before'), join(dir, 'after'))
  const { weights } = await train(join(dir, 'after'), options, { resumeFromCheckpoint: true })
  t.same(Buffer.from(weights.buffer), best)
})

t.test('what to resume from', async (t) => {
  const dir = t.testdir()
  const { trainer } = await open(dir)
  await t.rejects(trainer.train({ resumeFromCheckpoint: true }), { code: 'ERR_INVALID_ARGUMENT', message: /no checkpoint/ })
  await t.rejects(trainer.train({ resumeFromCheckpoint: join(dir, 'checkpoint-9') }), { code: 'ERR_IO' })
  t.equal((await trainer.train({ resumeFromCheckpoint: 'auto' })).globalStep, 11)
  t.same(readdirSync(dir).sort(), ['checkpoint-11', 'checkpoint-4', 'checkpoint-8', 'log.jsonl', 'trainer_state.json'])
  const again = await train(dir, {}, { resumeFromCheckpoint: join(dir, 'checkpoint-4') })
  t.equal(again.output.globalStep, 11)
  mkdirSync(join(dir, 'checkpoint-99'))
  writeFileSync(join(dir, 'checkpoint-99', 'trainer_state.json'), '{"global_step": 99')
  t.equal((await train(dir, {}, { resumeFromCheckpoint: true })).output.globalStep, 11, 'a broken one is passed over')
})

t.test('a new training in an old folder: its own checkpoints are resumed, those of the old one stay', async (t) => {
  const dir = t.testdir()
  await train(dir)
  const { output } = await train(dir, { args: { maxSteps: 6, saveSteps: 2, saveTotalLimit: 1 } })
  t.equal(output.lastCheckpoint, join(dir, 'checkpoint-6'))
  t.ok(existsSync(join(dir, 'checkpoint-11')))
  t.notOk(existsSync(join(dir, 'checkpoint-2')))
  const resumed = await train(dir, { args: { maxSteps: 7 } }, { resumeFromCheckpoint: true })
  t.equal(resumed.output.globalStep, 7)
})

t.test('a checkpoint of another model is refused', async (t) => {
  const dir = t.testdir()
  await train(dir, { args: { maxSteps: 2, saveSteps: 2 } })
  rmSync(join(dir, 'checkpoint-2', 'adapter_model.safetensors'))
  await t.rejects(train(dir, {}, { resumeFromCheckpoint: true }), { code: 'ERR_ADAPTER_MISMATCH', message: /"head.weight"/ })
})

t.test('kill -9 while saving leaves the previous checkpoint, from which the training goes on exactly', async (t) => {
  const dir = t.testdir()
  const whole = await train(join(dir, 'whole'))
  const killed = join(dir, 'killed')
  const worker = fileURLToPath(new URL('killed-while-saving.ts', import.meta.url))
  const child = spawn(process.execPath, [...process.execArgv, worker, killed, JSON.stringify(base)], { stdio: 'inherit' })
  const signal = await new Promise((resolve) => child.on('exit', (_, signal) => resolve(signal)))
  t.equal(signal, 'SIGKILL')
  const left = readdirSync(killed)
  t.ok(left.includes('checkpoint-4') && !left.includes('checkpoint-8'))
  t.ok(
    left.some((name) => name.startsWith('.checkpoint-8.')),
    'it died in the middle',
  )
  const resumed = await train(killed, {}, { resumeFromCheckpoint: true })
  t.same(resumed.weights, whole.weights)
  t.same(resumed.log, whole.log)
  t.notOk(
    readdirSync(killed).some((name) => name.startsWith('.')),
    'and tidies up',
  )
})

t.test('a checkpoint that was being replaced returns', async (t) => {
  const dir = t.testdir()
  await train(dir, { args: { maxSteps: 4 } })
  renameSync(join(dir, 'checkpoint-4'), join(dir, '.checkpoint-4.1.old'))
  cpSync(join(dir, '.checkpoint-4.1.old'), join(dir, '.checkpoint-4.1.new'), { recursive: true })
  const { output } = await train(dir, { args: { maxSteps: 5 } }, { resumeFromCheckpoint: true })
  t.equal(output.globalStep, 5)
  t.same(
    readdirSync(dir)
      .filter((name) => name.includes('checkpoint'))
      .sort(),
    ['checkpoint-4', 'checkpoint-5'],
  )
})

t.test('a disk that fails while saving is ERR_IO, the previous checkpoint intact', async (t) => {
  const dir = t.testdir()
  const { bigram, trainer } = await open(dir)
  // The state file cannot take the place of a folder: as good as a full disk, and it fails for root too.
  bigram.onSave = (folder) =>
    folder.includes('checkpoint-8') && mkdirSync(join(folder, 'trainer_state.json', 'x'), { recursive: true })
  await t.rejects(trainer.train(), { code: 'ERR_IO' })
  t.same(readdirSync(dir).sort(), ['checkpoint-4', 'log.jsonl', 'trainer_state.json'])
  t.equal((await train(dir, {}, { resumeFromCheckpoint: true })).output.globalStep, 11)
})
