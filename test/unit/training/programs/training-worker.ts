/** A Worker that trains an adapter and generates beside it; it tells of every step, and at the end what came out. */
import { parentPort, workerData } from 'node:worker_threads'
import { Model } from '../../../../lib/model/model.js'
import { Trainer } from '../../../../lib/training/trainer.js'
import { golden } from '../../model/goldens.js'
import { collator, type Example, examples } from '../bigram.js'

const { maxSteps, outputDir } = workerData as { maxSteps: number; outputDir: string }
const model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu', dtype: 'float32', quantization: 'nf4' })
model.addAdapter({ r: 4, targetModules: 'all-linear', loraDropout: 0.1, seed: 5 })
const losses: number[] = []
const trainer = new Trainer<Example>({
  model,
  collator,
  trainDataset: examples(20),
  args: {
    outputDir,
    maxSteps,
    loggingSteps: 1,
    learningRate: 1e-2,
    saveSteps: 2,
    saveTotalLimit: 1,
    seed: 7,
    disableProgress: true,
  },
})
trainer.on('log', ({ loss }) => losses.push(loss))
trainer.on('step', ({ step }) => parentPort?.postMessage({ step }))
const training = trainer.train()
// The bare base is not trained: its answer must not depend on what runs beside it.
const answers: number[][] = []
let trained = false
training.finally(() => (trained = true)).catch(() => {})
while (!trained) {
  const options = { adapter: null, maxNewTokens: 3, eosTokenId: [] }
  answers.push((await model.generate({ inputIds: [1, 5, 9] }, options)).tokenIds)
}
await training
const after = await model.generate({ inputIds: [1, 5, 9] }, { maxNewTokens: 3, eosTokenId: [] })
parentPort?.postMessage({ losses, answers: [...new Set(answers.map(String))], after: after.tokenIds })
await model.dispose()
