/**
 * Trains the tiny chat model from scratch, all weights, with this library alone, and writes it as a Hugging Face folder.
 *
 * usage: node dist/examples/tiny/pretrain.js [FOLDER] [--steps N] [--out FOLDER_FOR_CHECKPOINTS]
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import type { TrainingExample } from '../../lib/data/chat-collator.js'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { Model } from '../../lib/model/model.js'
import { Trainer } from '../../lib/training/trainer.js'
import { type Message, makeChat } from './corpus.js'
import { DEV, generate, TRAIN } from './generate-data.js'
import { Random } from './random.js'
import { writeTokenizer } from './train-tokenizer.js'
import { ask, makeContext } from './world.js'

/** A Llama of 1.1 million parameters. */
export const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 128,
  intermediate_size: 384,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  hidden_act: 'silu',
  max_position_embeddings: 1024,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  initializer_range: 0.06,
} as const

const CHATS_PER_STEP = 16

/** Answers read from texts that training does not see; labelled are their words alone, so the loss says how well the model reads. */
function readingTest(tokenizer: Tokenizer, count: number) {
  const random = new Random(3)
  return Array.from({ length: count }, () => {
    const context = makeContext(random)
    const fact = random.pick(context.facts)
    const messages: Message[] = [
      { role: 'user', content: `Context: ${context.text}\nQuestion: ${ask(random, fact)}` },
      { role: 'assistant', content: `The text says "${fact.value}".` },
    ]
    const { inputIds, text } = tokenizer.applyChatTemplate(messages)
    const starts = tokenizer.tokenOffsets(inputIds, text)!
    const begin = text.lastIndexOf(`"${fact.value}"`) + 1
    const labels = inputIds.map((id, t) => (starts[t]! >= begin && starts[t]! < begin + fact.value.length ? id : -100))
    return { inputIds, labels }
  })
}

/** Warm-up, a long plateau on which copying and finding emerge, and a linear decay. */
function schedule(step: number, total: number): number {
  return Math.min(1, (step + 1) / 50, Math.max(0.02, (1 - step / total) / 0.3))
}

async function pretrain(folder: string, steps: number, outputDir: string): Promise<void> {
  mkdirSync(folder, { recursive: true })
  writeTokenizer(folder)
  const tokenizer = await Tokenizer.fromFolder(folder)
  const ids = { bos_token_id: tokenizer.bosTokenId, eos_token_id: tokenizer.eosTokenId, pad_token_id: tokenizer.padTokenId }
  const config = { ...CONFIG, vocab_size: tokenizer.vocabSize, ...ids, torch_dtype: 'bfloat16' }
  const model = await Model.fromConfig(config, { device: 'cpu', dtype: 'float32', seed: 1, tokenizer, generationConfig: ids })

  const test = generate(DEV.seed, DEV.contexts, DEV.title, generate(TRAIN.seed, TRAIN.contexts, TRAIN.title, new Set()).facts)
  const random = new Random(11)
  const count = steps * CHATS_PER_STEP
  const chats = Array.from({ length: count }, (_, i) => ({ messages: makeChat(random, test.facts, i / count) }))
  const trainer = new Trainer<TrainingExample>({
    model,
    adapter: null,
    trainDataset: chats,
    evalDataset: readingTest(tokenizer, 200),
    args: {
      outputDir,
      maxSteps: steps,
      perDeviceTrainBatchSize: CHATS_PER_STEP,
      trainSamplingStrategy: 'sequential',
      learningRate: 3e-3,
      lrSchedulerType: schedule,
      adamBeta2: 0.95,
      weightDecay: 0.01,
      maxGradNorm: 1,
      loggingSteps: 25,
      evalStrategy: 'steps',
      evalSteps: 100,
      saveStrategy: 'no',
      seed: 1,
    },
  })
  const output = await trainer.train()
  await model.savePretrained(folder, { dtype: 'bfloat16' })
  writeTokenizer(folder) // as it was trained, to the byte
  writeFileSync(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`)
  console.log(`loss ${output.trainLoss.toFixed(4)} after ${output.globalStep} steps; written to ${folder}`)
  await trainer.dispose()
  await model.dispose()
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { steps: { type: 'string', default: '4000' }, out: { type: 'string', default: 'pretrain_output' } },
  })
  await pretrain(positionals[0] ?? 'examples/tiny/model', Number(values.steps), values.out)
}
