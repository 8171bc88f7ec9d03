/**
 * What stands around the arithmetic: tokenizing, making batches, loading weights.
 *
 * usage: node dist/bench/data/throughput.js --model FOLDER --data FOLDER
 *   --model  a folder with a model's weights, tokenizer and chat template
 *   --data   a folder with SQuAD 2.0's train.json
 */
import { parseArgs } from 'node:util'
import { readSquad, squadFile, toChat } from '../../examples/squad/data.js'
import { ChatCollator, Model, Tokenizer } from '../../lib/index.js'
import { median, report } from '../trial.js'

const SAMPLES = 400
const PER_BATCH = 40

const { values } = parseArgs({ options: { model: { type: 'string' }, data: { type: 'string' } } })
if (!values.model || !values.data) throw new Error('--model and --data are needed; see the head of this program')

/** The median of three runs. */
async function seconds(run: () => unknown): Promise<number> {
  const all: number[] = []
  for (let i = 0; i < 3; i++) {
    const begin = performance.now()
    await run()
    all.push((performance.now() - begin) / 1000)
  }
  return median(all)
}

const tokenizer = await Tokenizer.fromFolder(values.model)
const paragraphs = await readSquad(squadFile(values.data, 'train'))
const chats = paragraphs
  .flat()
  .slice(0, SAMPLES)
  .map((question) => ({ messages: toChat(question, { turns: 'single', reasoning: '' }) }))
const text = paragraphs
  .slice(0, 200)
  .map((questions) => questions[0]!.context)
  .join('\n')

const tokens = tokenizer.encode(text).length
const encoding = await seconds(() => tokenizer.encode(text))
const collating = await seconds(() => {
  const collator = new ChatCollator(tokenizer, { maxLength: 2048 })
  for (let i = 0; i < chats.length; i += PER_BATCH) collator.collate(chats.slice(i, i + PER_BATCH))
})
const load = (quantization: 'none' | 'nf4') => async () => {
  const model = await Model.fromPretrained(values.model!, { quantization })
  await model.dispose()
}
report({
  name: 'data',
  figures: {
    tokenizerTokensPerSecond: tokens / encoding,
    collatorSamplesPerSecond: chats.length / collating,
    loadSeconds: await seconds(load('none')),
    loadNf4Seconds: await seconds(load('nf4')),
  },
  setting: { tokens, samples: chats.length, samplesPerBatch: PER_BATCH },
})
