import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { Trainer, type TrainerOptions } from '../../../lib/training/trainer.js'
import { BigramModel, collator, type Example, examples } from './bigram.js'

async function open(outputDir: string, options: Partial<TrainerOptions<Example>> = {}) {
  const bigram = await BigramModel.open()
  const args = { disableProgress: true, maxSteps: 20, perDeviceTrainBatchSize: 2, outputDir, ...options.args }
  const trainer = new Trainer<Example>({ model: bigram.asModel, collator, trainDataset: examples(20), ...options, args })
  return { bigram, trainer }
}

const savedStep = (dir: string) => JSON.parse(readFileSync(join(dir, 'trainer_state.json'), 'utf8')).global_step as number

t.test('stop() finishes the step and saves', async (t) => {
  const dir = t.testdir()
  const { trainer } = await open(dir, {
    args: { saveStrategy: 'no' },
    callbacks: { onStepEnd: ({ step }) => step === 3 && trainer.stop() },
  })
  t.match(await trainer.train(), { stopReason: 'stopped', globalStep: 3, lastCheckpoint: join(dir, 'checkpoint-3') })
  t.equal(savedStep(dir), 3)
})

t.test('stop() right after train() stops before the first step', async (t) => {
  const { trainer } = await open(t.testdir())
  const training = trainer.train()
  trainer.stop()
  t.match(await training, { stopReason: 'stopped', globalStep: 0, lastCheckpoint: null })
  t.equal((await trainer.train()).globalStep, 20, 'and does not stop the next one')
})

t.test('a listener of the end that fails rejects', async (t) => {
  for (const fail of [
    () => Promise.reject(new Error('bang')),
    () => {
      throw new Error('bang')
    },
  ]) {
    const { trainer } = await open(t.testdir({}), { args: { maxSteps: 2 } })
    trainer.on('end', () => fail() as never)
    await t.rejects(trainer.train(), { message: 'bang' })
  }
})

t.test('dispose() stops and waits', async (t) => {
  const dir = t.testdir()
  const { trainer } = await open(dir, { args: { maxSteps: 100_000 } })
  const training = trainer.train()
  await setTimeout(50)
  await trainer.dispose()
  t.match(await training, { stopReason: 'stopped' })
})

t.test('aborted: the micro-batch is finished, a checkpoint saved, the promise rejected with the reason', async (t) => {
  const dir = t.testdir()
  const controller = new AbortController()
  const reason = new Error('enough')
  const { trainer, bigram } = await open(dir, { args: { gradientAccumulationSteps: 4 } })
  let steps = 0
  trainer.on('step', ({ step }) => {
    steps = step
    // In the middle of the step after the next.
    if (step === 3) setImmediate(() => controller.abort(reason))
  })
  await t.rejects(trainer.train({ signal: controller.signal }), reason)
  t.equal(savedStep(dir), steps)
  t.ok(existsSync(join(dir, `checkpoint-${steps}`)))
  t.equal(bigram.busy.size, 0)
  await t.rejects(trainer.train({ signal: controller.signal }), reason, 'aborted before it began')
  t.match(await trainer.train({ resumeFromCheckpoint: true }), { stopReason: 'completed', globalStep: 20 })
})

t.test('aborted within computeMetrics', async (t) => {
  const dir = t.testdir()
  const controller = new AbortController()
  const { trainer } = await open(dir, {
    args: { evalStrategy: 'steps', evalSteps: 2 },
    computeMetrics: ({ signal }) => {
      t.equal(signal, controller.signal)
      controller.abort()
      return {}
    },
  })
  await t.rejects(trainer.train({ signal: controller.signal }), { name: 'AbortError' })
  t.equal(savedStep(dir), 2)
})

t.test('whatever is thrown by a listener, a callback, the data or the collator stops after a checkpoint', async (t) => {
  const bang = new Error('bang')
  const throwing = (fail: boolean) => {
    if (fail) throw bang
  }
  let calls = 0
  const sources: [string, Partial<TrainerOptions<Example>>, ((trainer: Trainer<Example>) => void)?][] = [
    ['step listener', {}, (trainer) => trainer.on('step', ({ step }) => throwing(step === 3))],
    ['log listener', { args: { loggingSteps: 3 } }, (trainer) => trainer.once('log', () => throwing(true))],
    ['save listener', { args: { saveSteps: 3 } }, (trainer) => trainer.on('save', () => throwing(true))],
    ['asynchronous listener', {}, (trainer) => trainer.on('step', async ({ step }) => throwing(step === 3))],
    ['onStepEnd', { callbacks: { onStepEnd: async ({ step }) => throwing(step === 3) } }],
    ['onSave', { args: { saveSteps: 3 }, callbacks: [{}, { onSave: () => throwing(true) }] }],
    [
      'onEvaluate',
      {
        args: { evalStrategy: 'steps', evalSteps: 3 },
        evalDataset: examples(2),
        callbacks: { onEvaluate: () => throwing(true) },
      },
    ],
    ['computeMetrics', { args: { evalStrategy: 'steps', evalSteps: 3 }, computeMetrics: () => throwing(true) as never }],
    [
      'data set',
      { trainDataset: { length: 20, at: (i: number) => (++calls > 6 ? throwing(true) : undefined) ?? examples(20)[i]! } },
    ],
    [
      'collator',
      { collator: { collate: (batch) => (calls++ === 3 ? throwing(true) : undefined) ?? collator.collate(batch) } },
      () => {
        calls = 0
      },
    ],
  ]
  for (const [name, options, arrange] of sources) {
    const dir = t.testdir({})
    const { trainer, bigram } = await open(dir, options)
    arrange?.(trainer)
    await t.rejects(trainer.train(), bang, name)
    t.equal(savedStep(dir), 3, name)
    t.ok(existsSync(join(dir, 'checkpoint-3', 'optimizer.safetensors')), name)
    t.equal(bigram.busy.size, 0)
  }
})

t.test('the event loop turns at every step', async (t) => {
  const { trainer } = await open(t.testdir(), { args: { maxSteps: 40 } })
  let turns = 0
  const count = () => {
    turns++
    pending = setImmediate(count)
  }
  let pending = setImmediate(count)
  await trainer.train()
  clearImmediate(pending)
  t.ok(turns >= 40, `${turns} turns`)
})

t.test('plain lines where there is no terminal, nothing when disabled', async (t) => {
  const { trainer } = await open(t.testdir(), { args: { disableProgress: false, maxSteps: 4, loggingSteps: 2 } })
  const written: string[] = []
  t.intercept(process.stderr, 'write', { value: (text: string) => written.push(text) > 0 })
  t.intercept(process.stderr, 'isTTY', { value: false })
  trainer.on('step', ({ step }) => step === 1 && trainer.print('hello'))
  await trainer.train()
  t.match(written, [/^hello\n$/, /^step 2\/4 .*loss \d/, /^step 4\/4 .*loss \d/])
})
