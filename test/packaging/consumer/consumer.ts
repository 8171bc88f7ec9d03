// Compiled only: the published types under a strict consumer.
import { Batch, ChatCollator, Generator, Model, QuantuneError, Trainer, type TrainingArguments } from 'quantune'
import { exactMatch, extractAnswer } from 'quantune/evaluation'

export async function main(): Promise<void> {
  const model: Model = await Model.fromPretrained('folder', { quantization: 'nf4' })
  const args: TrainingArguments = { outputDir: 'out', maxSteps: 10, learningRate: 1e-4 }
  const trainer = new Trainer({
    model,
    trainDataset: [{ prompt: 'a', completion: 'b' }],
    collator: new ChatCollator(model.tokenizer),
    args,
  })
  trainer.on('log', ({ step, loss }) => console.log(step.toFixed(), loss.toFixed(3)))
  const { stopReason, globalStep } = await trainer.train()
  console.log(stopReason, globalStep)
  const { text } = await new Generator(model).generate({ messages: [{ role: 'user', content: 'Hello' }] }, { numBeams: 2 })
  const answer: string | null = extractAnswer(text)
  console.log(answer !== null && exactMatch(answer, ['Hello']))
  try {
    Batch.pack([])
  } catch (error) {
    if (error instanceof QuantuneError) console.log(error.code)
  }
}
