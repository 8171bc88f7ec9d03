import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { Model } from '../../../lib/model/model.js'
import { Trainer, type TrainerOptions } from '../../../lib/training/trainer.js'
import type { LogEvent } from '../../../lib/training/types.js'
import { golden, readGolden } from '../model/goldens.js'
import { collator, type Example, readLog } from './bigram.js'

interface Case {
  model: string
  steps: number
  learning_rate: number
  weight_decay: number
  warmup_steps: number
  losses: number[]
  grad_norms: number[]
}

const quiet = { disableProgress: true, loggingSteps: 1, saveStrategy: 'no' } as const

async function trainAndLog(options: TrainerOptions<Example>, how = {}) {
  const trainer = new Trainer<Example>(options)
  const logs: LogEvent[] = []
  trainer.on('log', (event) => logs.push(event))
  return { output: await trainer.train(how), logs }
}

const lora = { type: 'lora', r: 4, loraAlpha: 8, targetModules: 'all-linear', initLoraWeights: true } as const
const texts = Array.from({ length: 12 }, (_, i) => ({
  inputIds: Array.from({ length: 6 + i }, (_, t) => (i * 31 + t * 7) % 250),
}))

for (const name of ['lora_llama_all_linear', 'lora_gpt2']) {
  t.test(`${name}: losses and norms of every step are PEFT's, and so is the adapter that is saved`, async (t) => {
    const reference = JSON.parse(readFileSync(golden(`train/${name}/case.json`), 'utf8')) as Case
    const file = `train/${name}/case.safetensors`
    const [inputIds, attentionMask, labels] = await Promise.all(
      ['input_ids', 'attention_mask', 'labels'].map(async (tensor) => (await readGolden(file, tensor)).ids),
    )
    await using model = await Model.fromPretrained(golden(`models/${reference.model}`), {
      device: 'cpu',
      dtype: 'float32',
    })
    await model.loadAdapter(golden(`train/${name}/adapter`), { trainable: true })
    const outputDir = t.testdir()
    const { logs } = await trainAndLog({
      model,
      trainDataset: inputIds!.map((_, row) => ({ inputIds: [row] })),
      collator: {
        collate: (rows) => {
          const pick = (values: number[][] | undefined) => rows.map(({ inputIds: [row] }) => values![row!]!)
          return Batch.fromPadded({ inputIds: pick(inputIds), attentionMask: pick(attentionMask), labels: pick(labels) })
        },
      },
      args: {
        ...quiet,
        outputDir,
        maxSteps: reference.steps,
        learningRate: reference.learning_rate,
        weightDecay: reference.weight_decay,
        warmupSteps: reference.warmup_steps,
        // Three samples, one by one: accumulation must not show.
        perDeviceTrainBatchSize: 1,
        gradientAccumulationSteps: inputIds!.length,
        saveStrategy: 'steps',
      },
    })
    for (const [step, loss] of reference.losses.entries()) {
      t.ok(Math.abs(logs[step]!.loss - loss) < 2e-5 * loss, `loss ${step}: ${logs[step]!.loss}, ${loss}`)
      const norm = reference.grad_norms[step]!
      t.ok(Math.abs(logs[step]!.gradNorm - norm) < 1e-4 * norm, `norm ${step}: ${logs[step]!.gradNorm}, ${norm}`)
    }
    await model.loadAdapter(join(outputDir, `checkpoint-${reference.steps}`), { name: 'saved' })
    for (const [key, parameter] of model.resolveAdapter('saved')!.parameters()) {
      const { values } = await readGolden(file, `final.${key.replace(/\.weight$/, '.default.weight')}`)
      const off = (await parameter.data()).reduce((max, value, i) => Math.max(max, Math.abs(value - values[i]!)), 0)
      if (off > 1e-4) t.fail(`${key} is off by ${off}`)
    }
  })
}

t.test('LoRA with dropout and checkpointing: resumed bit for bit, and nothing is left in memory', async (t) => {
  const dir = t.testdir({ whole: {}, parts: {} })
  const run = async (outputDir: string, stops: readonly number[]) => {
    for (const stop of [...stops, 0]) {
      await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu', quantization: 'nf4' })
      model.addAdapter({ ...lora, loraDropout: 0.2, seed: 3 })
      const trainer = new Trainer<Example>({
        model,
        collator,
        trainDataset: texts,
        evalDataset: texts.slice(0, 1),
        args: {
          ...quiet,
          outputDir,
          maxSteps: 7,
          learningRate: 0.01,
          perDeviceTrainBatchSize: 2,
          gradientAccumulationSteps: 2,
          gradientCheckpointing: true,
          saveStrategy: 'steps',
        },
      })
      trainer.on('step', ({ step }) => step === stop && trainer.stop())
      await trainer.evaluate() // the model makes its constants at first use
      await model.device.settled()
      const before = model.memoryUsage().current.total
      await trainer.train({ resumeFromCheckpoint: 'auto' })
      await model.device.settled()
      t.equal(model.memoryUsage().current.total, before)
    }
    const checkpoint = join(outputDir, 'checkpoint-7')
    const files = readdirSync(checkpoint).filter((file) => file.endsWith('.safetensors'))
    return {
      log: await readLog(outputDir),
      files: files.map((file) => [file, readFileSync(join(checkpoint, file)).toString('hex')]),
    }
  }
  const whole = await run(join(dir, 'whole'), [])
  const parts = await run(join(dir, 'parts'), [2, 5])
  t.same(parts.log, whole.log)
  t.same(parts.files, whole.files)
})

t.test('full training from a config: every parameter learns, the checkpoint is a model, resuming is exact', async (t) => {
  const config = JSON.parse(readFileSync(golden('models/llama/config.json'), 'utf8'))
  const dir = t.testdir({ whole: {}, parts: {} })
  const args = {
    ...quiet,
    maxSteps: 24,
    learningRate: 0.01,
    perDeviceTrainBatchSize: 6,
    saveStrategy: 'steps',
    saveSteps: 12,
  } as const
  const run = async (outputDir: string, how = {}) => {
    await using model = await Model.fromConfig(config, { device: 'cpu', seed: 1 })
    return await trainAndLog({ model, collator, trainDataset: texts, args: { ...args, outputDir } }, how)
  }
  const { logs } = await run(join(dir, 'whole'))
  t.ok(logs[23]!.loss < logs[0]!.loss - 1, `${logs[0]!.loss} → ${logs[23]!.loss}`)
  const resumed = await run(join(dir, 'parts'), { resumeFromCheckpoint: join(dir, 'whole', 'checkpoint-12') })
  t.same(
    resumed.logs.map(({ loss }) => loss),
    logs.slice(12).map(({ loss }) => loss),
  )
  await using loaded = await Model.fromPretrained(join(dir, 'whole', 'checkpoint-24'), { device: 'cpu' })
  const evaluator = new Trainer<Example>({ model: loaded, collator, evalDataset: texts })
  t.ok((await evaluator.evaluate()).eval_loss! < logs[0]!.loss - 1, 'the saved model has learned')
})

t.test('biases alone, beside a frozen 4-bit base', async (t) => {
  const outputDir = t.testdir()
  const run = async (stop: number, how = {}) => {
    await using model = await Model.fromPretrained(golden('models/qwen2'), { device: 'cpu', quantization: 'nf4' })
    for (const [name, parameter] of model.parameters()) parameter.requiresGrad = name.endsWith('.bias')
    const args = {
      ...quiet,
      outputDir,
      maxSteps: 4,
      perDeviceTrainBatchSize: 12,
      learningRate: 0.02,
      saveStrategy: 'steps',
      saveSteps: stop,
    } as const
    const { logs } = await trainAndLog({ model, collator, trainDataset: texts, args }, how)
    return logs.map(({ loss }) => loss)
  }
  const losses = await run(2)
  t.ok(losses[3]! < losses[0]!)
  t.same(await run(2, { resumeFromCheckpoint: join(outputDir, 'checkpoint-2') }), losses.slice(2))
})

t.test('a frozen adapter is refused with the way out', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  await model.loadAdapter(golden('train/lora_llama_all_linear/adapter'))
  const trainer = new Trainer<Example>({ model, collator, trainDataset: texts, args: { ...quiet, outputDir: t.testdir() } })
  await t.rejects(trainer.train(), { code: 'ERR_INVALID_ARGUMENT', message: /trainable: true/ })
})

t.test('a merged adapter is refused', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  model.addAdapter(lora)
  await model.mergeAdapter('default')
  const trainer = new Trainer<Example>({ model, collator, trainDataset: texts, args: { ...quiet, outputDir: t.testdir() } })
  await t.rejects(trainer.train(), { code: 'ERR_INVALID_ARGUMENT', message: /unmerge it/ })
})

t.test('rows of new tokens alone learn, and are resumed exactly', async (t) => {
  const outputDir = t.testdir()
  const run = async (how = {}) => {
    const tokenizer = await Tokenizer.fromFolder(golden('models/stories260k'))
    const config = { ...JSON.parse(readFileSync(golden('models/stories260k/config.json'), 'utf8')), tie_word_embeddings: true }
    await using model = await Model.fromConfig(config, { device: 'cpu', tokenizer })
    const [a, b] = model.addTokens(['<one>', '<two>'])
    const dataset = [{ inputIds: [5, a!, b!, 9, 11], labels: [-100, -100, -100, 9, 11] }]
    const args = { ...quiet, outputDir, maxSteps: 6, learningRate: 0.05, saveStrategy: 'steps', saveSteps: 3 } as const
    const { logs } = await trainAndLog({ model, collator, trainDataset: dataset, args }, how)
    return logs.map(({ loss }) => loss)
  }
  const losses = await run()
  t.ok(losses[5]! < losses[0]!, `${losses}`)
  t.same(await run({ resumeFromCheckpoint: join(outputDir, 'checkpoint-3') }), losses.slice(3))
})

t.test('a model that is disposed of while it is being trained waits for the training', async (t) => {
  const model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  model.addAdapter(lora)
  const args = { ...quiet, outputDir: t.testdir(), maxSteps: 5, saveStrategy: 'steps' } as const
  const trainer = new Trainer<Example>({ model, collator, trainDataset: texts, args })
  const training = trainer.train()
  const disposed = model.dispose()
  await t.rejects(trainer.train(), { code: 'ERR_DISPOSED' })
  t.match(await training, { stopReason: 'completed', globalStep: 5 })
  await disposed
  t.throws(() => model.forward(collator.collate(texts.slice(0, 1))), { code: 'ERR_DISPOSED' })
})

t.test('ERR_BUSY for a second training of one adapter, not for another one', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  model.addAdapter(lora, 'a')
  model.addAdapter(lora, 'b')
  const train = (adapter: string) =>
    new Trainer<Example>({
      model,
      adapter,
      collator,
      trainDataset: texts,
      args: { ...quiet, maxSteps: 3, outputDir: join(t.testdirName, adapter) },
    }).train()
  const [first, second, other] = [train('a'), train('a'), train('b')]
  await t.rejects(second, { code: 'ERR_BUSY' })
  t.equal((await first).globalStep, 3)
  t.equal((await other).globalStep, 3)
})
