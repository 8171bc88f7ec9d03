import { readdirSync } from 'node:fs'
import t from 'tap'
import { Model } from '../../../lib/model/model.js'
import { Trainer } from '../../../lib/training/trainer.js'
import { golden } from '../model/goldens.js'
import { collator, type Example } from './bigram.js'

const good = { inputIds: [1, 2, 3, 4] }

t.test('samples that a model cannot take end the training, and nothing else', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu', dtype: 'float32' })
  model.addAdapter({ r: 2 })
  const train = (bad: Example, outputDir: string) =>
    new Trainer<Example>({
      model,
      collator,
      trainDataset: [good, bad],
      args: {
        outputDir,
        maxSteps: 2,
        saveSteps: 1,
        perDeviceTrainBatchSize: 1,
        trainSamplingStrategy: 'sequential',
        disableProgress: true,
      },
    }).train()
  const cases: [string, Example, { code: string; message?: RegExp; details?: object }][] = [
    ['an id beyond the vocabulary', { inputIds: [1, 256, 3] }, { code: 'ERR_INVALID_ARGUMENT', message: /256/ }],
    ['a negative id', { inputIds: [1, -7, 3], labels: [-100, -100, 3] }, { code: 'ERR_INVALID_ARGUMENT', message: /-7/ }],
    ['a label beyond it', { inputIds: [1, 2], labels: [-100, 300] }, { code: 'ERR_INVALID_ARGUMENT', message: /token 300/ }],
    [
      'longer than the context',
      { inputIds: new Array(600).fill(5) },
      { code: 'ERR_CONTEXT_LENGTH', details: { length: 600, limit: 512 } },
    ],
    ['empty', { inputIds: [] }, { code: 'ERR_INVALID_ARGUMENT', message: /empty|no tokens/ }],
  ]
  for (const [name, bad, error] of cases) {
    const outputDir = t.testdir()
    await t.rejects(train(bad, outputDir), error, name)
    t.ok(readdirSync(outputDir).includes('checkpoint-1'), `${name}: the checkpoint before it is there`)
  }
  t.equal((await train({ inputIds: [5, 6] }, t.testdir())).globalStep, 2, 'the model is usable afterwards')
})
