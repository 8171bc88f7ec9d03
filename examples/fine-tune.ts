// Fine-tunes a chat model on a JSONL file of chats ({ "messages": [...] } a line) and asks it the same question before and after.
// usage: node dist/examples/fine-tune.js MODEL CHATS.jsonl QUESTION
import { Dataset, Model, Trainer } from '../lib/index.js'

const [source, chats, question] = process.argv.slice(2) as [string, string, string]
const model = await Model.fromPretrained(source, { quantization: 'nf4' })
const prompt = { messages: [{ role: 'user', content: question }] }
const before = await model.generate(prompt, { maxNewTokens: 64 })

model.addAdapter({ type: 'lora', r: 16, loraAlpha: 32, targetModules: 'all-linear' })
const trainDataset = await Dataset.fromJsonl<{ messages: { role: string; content: string }[] }>(chats)
const args = { outputDir: 'runs/fine-tune', maxSteps: 100, learningRate: 5e-4, perDeviceTrainBatchSize: 8, loggingSteps: 10 }
const trainer = new Trainer({ model, trainDataset, args })
trainer.on('log', ({ step, loss }) => console.log(`step ${step}: loss ${loss.toFixed(3)}`))
await trainer.train()
await model.saveAdapter('runs/fine-tune/adapter') // PEFT loads it too

const after = await model.generate(prompt, { maxNewTokens: 64 })
console.log(`\nbefore: ${before.text}\nafter:  ${after.text}`)
await model.dispose()
