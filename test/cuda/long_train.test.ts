// Thousands of optimizer steps of a tiny model on the GPU: not a byte is left over, and the loss falls. QUANTUNE_TEST_STEPS says how
// many (npm run test:gpu: 10000); without it this is left out.
import t from 'tap'
import { Model } from '../../lib/model/model.js'
import { Trainer } from '../../lib/training/trainer.js'
import type { LogEvent } from '../../lib/training/types.js'
import { golden } from '../unit/model/goldens.js'
import { collator, type Example } from '../unit/training/bigram.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const steps = Number(process.env.QUANTUNE_TEST_STEPS ?? 0)
const skip = name.startsWith('cuda') && steps > 0 ? false : 'needs QUANTUNE_TEST_DEVICE=cuda and QUANTUNE_TEST_STEPS'
const texts = Array.from({ length: 12 }, (_, i) => ({
  inputIds: Array.from({ length: 6 + i }, (_, t) => (i * 31 + t * 7) % 250),
}))

t.test(`${steps} steps leave nothing behind`, { skip, timeout: 1_800_000 }, async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), {
    device: name as 'cpu',
    dtype: 'bfloat16',
    quantization: { type: 'nf4', doubleQuant: true },
  })
  model.addAdapter({ type: 'lora', r: 4, loraAlpha: 8, targetModules: 'all-linear', seed: 3 })
  const trainer = new Trainer<Example>({
    model,
    collator,
    trainDataset: texts,
    args: {
      outputDir: t.testdir(),
      disableProgress: true,
      loggingSteps: Math.ceil(steps / 10),
      saveStrategy: 'no',
      maxSteps: steps,
      learningRate: 1e-3,
      perDeviceTrainBatchSize: 12,
    },
  })
  const logs: LogEvent[] = []
  const bytes: number[] = []
  trainer.on('log', (event) => {
    logs.push(event)
    bytes.push(model.memoryUsage().current.total)
  })
  await trainer.train()
  t.ok(logs.length >= 10, 'it logs')
  // Each step has the same batch, so the same tensors are alive whenever one is logged.
  t.strictSame(
    bytes.slice(1).map((now) => now - bytes[0]!),
    bytes.slice(1).map(() => 0),
    'bytes of tensors, against those of the first',
  )
  t.ok(logs.at(-1)!.loss < logs[0]!.loss, `the loss falls from ${logs[0]!.loss} to ${logs.at(-1)!.loss}`)
})
