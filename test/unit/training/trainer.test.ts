import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Trainer, type TrainerOptions } from '../../../lib/training/trainer.js'
import type { LogEvent } from '../../../lib/training/types.js'
import { BigramModel, collator, type Example, examples, readLog } from './bigram.js'

const quiet = { disableProgress: true, loggingSteps: 1, learningRate: 0.05, saveStrategy: 'no' } as const

async function train(outputDir: string, options: Partial<TrainerOptions<Example>> = {}, dropout = 0) {
  const bigram = await BigramModel.open({ dropout })
  const args = { ...quiet, outputDir, ...options.args }
  const trainer = new Trainer<Example>({ model: bigram.asModel, collator, trainDataset: examples(20), ...options, args })
  const logs: LogEvent[] = []
  trainer.on('log', (event) => logs.push(event))
  const output = await trainer.train()
  return { trainer, output, logs, bigram, weights: (await bigram.head.data()) as Float32Array }
}

const worst = (a: Float32Array, b: Float32Array) => a.reduce((max, value, i) => Math.max(max, Math.abs(value - b[i]!)), 0)

t.test('it learns, and says so in events, state, log.jsonl and trainer_state.json', async (t) => {
  const dir = t.testdir()
  const { trainer, output, logs } = await train(dir, { args: { numTrainEpochs: 20, learningRate: 0.2 } })
  t.match(output, { stopReason: 'completed', globalStep: 60, lastCheckpoint: null })
  t.equal(logs.length, 60)
  t.match(logs[0], { step: 1, maxSteps: 60, epoch: 8 / 20, learningRate: 0.2 })
  t.ok(logs[59]!.loss < 0.8 * logs[0]!.loss, `${logs[0]!.loss} → ${logs[59]!.loss}`)
  t.ok(logs.every(({ gradNorm, tokensPerSecond }) => gradNorm > 0 && tokensPerSecond > 0))
  const mean = logs.reduce((sum, { loss }) => sum + loss, 0) / 60
  t.ok(Math.abs(output.trainLoss - mean) < 1e-6)
  t.match(trainer.state, { globalStep: 60, maxSteps: 60, epoch: 20 })
  const lines = await readLog(dir)
  t.equal(lines.length, 61)
  t.match(lines[3], { step: 4, loss: logs[3]!.loss, learning_rate: logs[3]!.learningRate, grad_norm: logs[3]!.gradNorm })
  t.match(lines[60], { step: 60, train_loss: output.trainLoss })
  const state = JSON.parse(readFileSync(join(dir, 'trainer_state.json'), 'utf8'))
  t.match(state, { global_step: 60, max_steps: 60, epoch: 20, log_history: { length: 61 } })
})

t.test('accumulation changes nothing but memory', async (t) => {
  const args = { maxSteps: 4, perDeviceTrainBatchSize: 12, loggingSteps: 2, warmupSteps: 2 }
  const whole = await train(t.testdir({}), { args })
  for (const cut of [
    { perDeviceTrainBatchSize: 3, gradientAccumulationSteps: 4 },
    { perDeviceTrainBatchSize: 1, gradientAccumulationSteps: 12 },
    { maxTokensPerBatch: 12 },
  ]) {
    const other = await train(join(t.testdirName, 'other'), { args: { ...args, ...cut } })
    t.ok(worst(whole.weights, other.weights) < 1e-6, `weights: ${worst(whole.weights, other.weights)}`)
    for (const [i, { loss }] of whole.logs.entries()) t.ok(Math.abs(loss - other.logs[i]!.loss) < 1e-6)
  }
})

t.test('a micro-batch without labels is legal, a step without any is not', async (t) => {
  const masked = { inputIds: [1, 2, 3], labels: [-100, -100, -100] }
  const sequential = { trainSamplingStrategy: 'sequential', perDeviceTrainBatchSize: 1, gradientAccumulationSteps: 2 } as const
  const dataset = [masked, ...examples(3)]
  const { output } = await train(t.testdir(), { trainDataset: dataset, args: { ...sequential, maxSteps: 2 } })
  t.equal(output.globalStep, 2)
  const bad = train(t.testdir(), { trainDataset: [...examples(2), masked, masked], args: { ...sequential, maxSteps: 2 } })
  await t.rejects(bad, { code: 'ERR_ALL_LABELS_MASKED', message: /step 2/, details: { step: 2, samples: 2 } })
})

t.test('the first learning rate of a warm-up is 0 and changes nothing', async (t) => {
  const { logs, bigram } = await train(t.testdir(), { args: { maxSteps: 1, warmupSteps: 1 } })
  t.equal(logs[0]!.learningRate, 0)
  const fresh = await BigramModel.open()
  t.same(await bigram.head.data(), await fresh.head.data())
})

t.test('evaluation: token-weighted loss, metrics with their prefix, the best model kept and loaded', async (t) => {
  const dir = t.testdir()
  const values = [0.3, 0.7, 0.5, 0.6]
  const seen: number[] = []
  const weightsAt: Float32Array[] = []
  const bigram = await BigramModel.open()
  const trainer = new Trainer<Example>({
    model: bigram.asModel,
    collator,
    trainDataset: examples(20),
    evalDataset: examples(7),
    computeMetrics: async ({ model, step }) => {
      t.ok(model)
      weightsAt[step] = await bigram.head.data()
      return { exact_match: values[seen.push(step) - 1] ?? 0.5 }
    },
    args: {
      ...quiet,
      outputDir: dir,
      maxSteps: 8,
      evalStrategy: 'steps',
      evalSteps: 2,
      saveStrategy: 'steps',
      saveSteps: 2,
      saveTotalLimit: 1,
      loadBestModelAtEnd: true,
      metricForBestModel: 'exact_match',
    },
  })
  const { metrics } = await trainer.train()
  t.same(seen, [2, 4, 6, 8])
  t.equal(metrics.eval_exact_match, 0.6)
  t.match(trainer.state, { bestMetric: 0.7, bestGlobalStep: 4, bestModelCheckpoint: join(dir, 'checkpoint-4') })
  t.same(
    readdirSync(dir)
      .filter((name) => name.startsWith('checkpoint'))
      .sort(),
    ['checkpoint-4', 'checkpoint-8'],
  )
  t.same(await bigram.head.data(), weightsAt[4])
  const one = await trainer.evaluate()
  const single = new Trainer<Example>({
    model: bigram.asModel,
    collator,
    evalDataset: examples(7),
    args: { perDeviceEvalBatchSize: 1 },
  })
  t.ok(Math.abs((await single.evaluate()).eval_loss! - one.eval_loss!) < 1e-6, 'does not depend on the batch size')
})

t.test('early stopping counts evaluations without improvement', async (t) => {
  const losses = [1, 0.9, 0.8, 0.8, 0.9, 0.8]
  const { output } = await train(t.testdir(), {
    computeMetrics: ({ step }) => ({ loss: losses[step - 1]! }),
    args: { maxSteps: 50, evalStrategy: 'steps', evalSteps: 1, earlyStoppingPatience: 3 },
  })
  t.match(output, { stopReason: 'early-stopping', globalStep: 6 })
})

t.test('a metric that is needed and missing is named', async (t) => {
  const args = { maxSteps: 3, evalStrategy: 'steps', evalSteps: 1, earlyStoppingPatience: 1, metricForBestModel: 'f1' } as const
  const missing = train(t.testdir(), { computeMetrics: () => ({ em: 1 }), args })
  await t.rejects(missing, { code: 'ERR_INVALID_ARGUMENT', message: /a number "eval_f1", only eval_em/ })
  const wrong = train(t.testdir(), { computeMetrics: () => ({ f1: 'high' }) as never, args })
  await t.rejects(wrong, { message: /expected f1 to be a number/ })
})

t.test('a loss that is not finite stops with the last checkpoint intact', async (t) => {
  const dir = t.testdir()
  const bigram = await BigramModel.open()
  const args = { ...quiet, outputDir: dir, maxSteps: 9, saveStrategy: 'steps', saveSteps: 2, loggingSteps: 3 } as const
  const trainer = new Trainer<Example>({ model: bigram.asModel, collator, trainDataset: examples(20), args })
  trainer.on('step', ({ step }) => {
    if (step === 5) bigram.head.value.write(new Float32Array(bigram.head.value.size).fill(Number.NaN))
  })
  await t.rejects(trainer.train(), { code: 'ERR_NOT_FINITE', details: { lastCheckpoint: join(dir, 'checkpoint-4') } })
  t.notOk(existsSync(join(dir, 'checkpoint-6')))
  t.ok(existsSync(join(dir, 'checkpoint-4', 'optimizer.safetensors')))
})

t.test('one training per adapter', async (t) => {
  const bigram = await BigramModel.open()
  const make = () =>
    new Trainer<Example>({
      model: bigram.asModel,
      collator,
      trainDataset: examples(8),
      args: { ...quiet, outputDir: t.testdir(), maxSteps: 3 },
    })
  const first = make().train()
  await t.rejects(make().train(), { code: 'ERR_BUSY' })
  await first
  t.match(await make().train(), { stopReason: 'completed' })
})

t.test('a step leaves nothing behind', async (t) => {
  const bigram = await BigramModel.open()
  const { device } = bigram
  const bytes = async () => {
    await device.settled()
    return device.memoryUsage().current.total
  }
  const before = await bytes()
  const during: number[] = []
  const trainer = new Trainer<Example>({
    model: bigram.asModel,
    collator,
    trainDataset: examples(20),
    callbacks: { onStepEnd: async ({ step }) => step % 50 === 0 && during.push(await bytes()) },
    args: { ...quiet, outputDir: t.testdir(), maxSteps: 1000, perDeviceTrainBatchSize: 2, loggingSteps: 100 },
  })
  await trainer.train()
  t.equal(during.length, 20)
  t.equal(new Set(during).size, 1, `bytes: ${during}`)
  t.equal(await bytes(), before)
})

t.test('options are checked at the constructor', async (t) => {
  const { asModel: model } = await BigramModel.open()
  const make = (options: object) => () => new Trainer({ model, collator, ...options } as TrainerOptions<Example>)
  t.throws(make({ train_dataset: [] }), { code: 'ERR_INVALID_ARGUMENT', message: /did you mean "trainDataset"/ })
  t.throws(make({ model: {} }), { message: /expected a Model/ })
  t.throws(make({ trainDataset: 3 }), { message: /trainDataset: expected an array/ })
  t.throws(make({ collator: () => {} }), { message: /function collate/ })
  t.throws(make({ computeMetrics: 1 }), { message: /computeMetrics: expected a function/ })
  t.throws(make({ callbacks: { onStepend() {} } }), { message: /did you mean "onStepEnd"/ })
  t.throws(make({ args: { learning_rate: 1 } }), { message: /did you mean "learningRate"/ })
  await t.rejects(new Trainer({ model, collator }).train(), { message: /trainDataset/ })
  await t.rejects(new Trainer({ model, collator }).evaluate(), { message: /neither an evalDataset nor computeMetrics/ })
  const disposed = new Trainer({ model, collator })
  await disposed.dispose()
  await t.rejects(disposed.train(), { code: 'ERR_DISPOSED' })
})
