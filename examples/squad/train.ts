// Fine-tunes a model on OUTPUT/dataset/train.jsonl: adapter to OUTPUT/adapter, log, checkpoints and loss curve beside it.
// Ctrl-C saves and ends; the same command goes on where it stopped.
import { basename, join } from 'node:path'
import { ChatCollator, Dataset, Model, Trainer } from '../../lib/index.js'
import { configure, TRAINING_FLAGS } from './config.js'
import { writeCurve } from './curve.js'
import { datasetFile, type Example, readSettings, reasoningTokens } from './data.js'
import { loading } from './progress.js'

const { config, flags } = configure('train [--fresh] [flags]', {
  ...TRAINING_FLAGS,
  fresh: { type: 'boolean', path: null, help: 'do not go on from the last checkpoint' },
})
const { tokens } = reasoningTokens(await readSettings(config.output))
const trainDataset = await Dataset.fromJsonl<Example>(datasetFile(config.output, 'train'))
const evalDataset = await Dataset.fromJsonl<Example>(datasetFile(config.output, 'validation'))

const model = await Model.fromPretrained(config.model, { ...config.load, onProgress: loading() })
model.addAdapter({ seed: config.training.seed, ...config.lora })
if (tokens.length > 0) model.addTokens(tokens, { trainable: true, predictable: false })

const { evalStrategy = 'no', ...training } = config.training
const collator = new ChatCollator(model.tokenizer, {
  maxLength: config.maxLength,
  ignoreTokens: tokens,
  ...(config.sharePrefixes === 'auto' ? {} : { sharePrefixes: config.sharePrefixes }),
})
const trainer = new Trainer({
  model,
  trainDataset,
  ...(evalDataset.length > 0 ? { evalDataset } : {}),
  prefixKey: ({ group }) => group,
  collator,
  args: { ...training, evalStrategy: evalDataset.length > 0 ? evalStrategy : 'no', outputDir: config.output },
})
process.once('SIGINT', () => {
  console.log('\nstopping after this step; Ctrl-C again ends at once')
  trainer.stop()
})
const result = await trainer.train(flags.fresh ? {} : { resumeFromCheckpoint: 'auto' })
await model.saveAdapter(join(config.output, 'adapter'))
await writeCurve(
  join(config.output, 'log.jsonl'),
  join(config.output, 'curve.svg'),
  `Fine-tuning ${basename(config.model)} on SQuAD 2.0`,
)
console.log(`${result.stopReason} after ${result.globalStep} steps, mean loss ${result.trainLoss.toFixed(4)}`)
console.log(`adapter: ${join(config.output, 'adapter')}\nloss curve: ${join(config.output, 'curve.svg')}`)
await model.dispose()
