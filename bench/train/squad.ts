/**
 * SQuAD samples a second, end to end through the Trainer: real contexts and questions in llama-squad's prompt, every question of each
 * chosen paragraph, on a model of SmolLM2-135M's shape with random weights (NF4, LoRA r = 16 on all linear layers).
 *
 * usage: node dist/bench/train/squad.js --model FOLDER --data FOLDER [--samples 40] [--steps 4] [--linear] [--tokens 4096] [--ids FILE]
 *   --model   a folder with SmolLM2's tokenizer and chat template
 *   --data    a folder with SQuAD 2.0's train.json
 *   --linear  samples packed one after the other instead of prefix trees
 *   --tokens  maxTokensPerBatch
 *   --ids     writes the samples' token ids there, for the peer, and trains nothing
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { readSquad, squadFile, toChat } from '../../examples/squad/data.js'
import { ChatCollator, env, Model, Tokenizer, Trainer } from '../../lib/index.js'
import { shapeOf } from '../shapes.js'
import { median, peakMegabytes, report } from '../trial.js'
import { trainingOperations } from './operations.js'

const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    samples: { type: 'string', default: '40' },
    steps: { type: 'string', default: '4' },
    tokens: { type: 'string', default: '4096' },
    linear: { type: 'boolean', default: false },
    ids: { type: 'string' },
  },
})
if (!values.model || !values.data) throw new Error('--model and --data are needed; see the head of this program')
const [samples, steps, maxTokensPerBatch] = [values.samples, values.steps, values.tokens].map(Number) as [
  number,
  number,
  number,
]

const tokenizer = await Tokenizer.fromFolder(values.model)
const collator = new ChatCollator(tokenizer, { maxLength: 2048, sharePrefixes: !values.linear })
const examples = choose(await readSquad(squadFile(values.data, 'train')), samples * (steps + 1))
if (values.ids) await writeIds(values.ids)
else await train()

/** Whole paragraphs, evenly spaced over the file, until there are at least `count` questions. */
function choose(paragraphs: Awaited<ReturnType<typeof readSquad>>, count: number) {
  const perParagraph = paragraphs.reduce((sum, { length }) => sum + length, 0) / paragraphs.length
  const stride = Math.max(1, Math.floor(paragraphs.length / Math.ceil((count / perParagraph) * 1.2)))
  const chosen = []
  for (let i = 0; i < paragraphs.length && chosen.length < count; i += stride) {
    for (const question of paragraphs[i]!) {
      chosen.push({ group: String(i), messages: toChat(question, { turns: 'single', reasoning: '' }) })
    }
  }
  return chosen
}

async function writeIds(path: string): Promise<void> {
  const encoded = examples.map((example) => collator.encode({ messages: example.messages }))
  const rows = encoded.map(({ inputIds, labels }) => ({ inputIds: [...inputIds], labels: [...labels] }))
  await writeFile(path, JSON.stringify(rows))
}

async function train(): Promise<void> {
  const shape = shapeOf('smollm2-135m')
  const r = 16
  const model = await Model.fromConfig(shape, { quantization: 'nf4', tokenizer })
  model.addAdapter({ type: 'lora', r, loraAlpha: r, targetModules: 'all-linear' })
  const counted = { tokens: 0, operations: 0 }
  const outputDir = await mkdtemp(join(tmpdir(), 'quantune-bench-'))
  const trainer = new Trainer({
    model,
    trainDataset: examples,
    prefixKey: ({ group }) => group,
    collator: {
      collate: (chunk, context) => {
        const batch = collator.collate(chunk, context)
        counted.tokens += batch.inputIds.length
        counted.operations += trainingOperations(batch, shape, r)
        return batch
      },
    },
    args: {
      outputDir,
      maxSteps: steps + 1,
      perDeviceTrainBatchSize: samples,
      maxTokensPerBatch,
      trainSamplingStrategy: 'group_by_prefix',
      loggingSteps: 1,
      saveStrategy: 'no',
      disableProgress: true,
    },
  })
  const samplesPerSecond: number[] = []
  const tokensPerSecond: number[] = []
  trainer.on('log', (entry) => {
    samplesPerSecond.push(entry.samplesPerSecond)
    tokensPerSecond.push(entry.tokensPerSecond)
  })
  await trainer.train()
  await rm(outputDir, { recursive: true })
  report({
    name: 'train-squad',
    figures: {
      samplesPerSecond: median(samplesPerSecond.slice(1)),
      tokensPerSecond: median(tokensPerSecond.slice(1)),
      gigaflopsPerSecond: (median(tokensPerSecond.slice(1)) * counted.operations) / counted.tokens / 1e9,
      peakMegabytes: peakMegabytes(),
    },
    setting: {
      packing: values.linear ? 'linear' : 'trees',
      samplesPerStep: samples,
      maxTokensPerBatch,
      variant: model.device.variant,
      threads: env.numThreads,
    },
  })
  await model.dispose()
}
