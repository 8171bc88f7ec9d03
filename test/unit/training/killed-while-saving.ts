// Started by resume.test.ts: trains, and dies in the middle of its second checkpoint.
import { Trainer } from '../../../lib/training/trainer.js'
import { BigramModel, collator, type Example, examples } from './bigram.js'

const [outputDir, args] = process.argv.slice(2)
const bigram = await BigramModel.open({ dropout: 0.3 })
bigram.onSave = (folder) => {
  if (folder.includes('checkpoint-8')) process.kill(process.pid, 'SIGKILL')
}
const trainer = new Trainer<Example>({
  model: bigram.asModel,
  collator,
  trainDataset: examples(18),
  args: { ...JSON.parse(args!), outputDir },
})
await trainer.train()
