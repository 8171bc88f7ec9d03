import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  ChatCollator,
  type ChatMessage,
  Dataset,
  type LogEvent,
  Model,
  type ModelOptions,
  Trainer,
  type TrainingArguments,
} from '../../lib/index.js'
import { golden } from '../unit/model/goldens.js'

/** The whole path of a person who fine-tunes a small story model on chats, with nothing but what the package exports. */

const TEMPLATE =
  "{{ bos_token }}{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}{% if message['role'] == 'assistant' %}" +
  "{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
const ANSWERS = { Lily: 'a red ball', Tom: 'two blue cars', Ben: 'the old cat', Sue: 'a big cake' }
const chats = Object.entries(ANSWERS).map(([name, answer]): { messages: ChatMessage[] } => ({
  messages: [
    { role: 'user', content: `What does ${name} have?` },
    { role: 'assistant', content: answer },
  ],
}))
const questions = chats.map(({ messages }) => ({ messages: messages.slice(0, 1) }))

const folder = t.testdir()
const base = join(folder, 'base')
cpSync(golden('models/stories260k'), base, { recursive: true })
writeFileSync(join(base, 'chat_template.jinja'), TEMPLATE)
const file = join(folder, 'chats.jsonl')
writeFileSync(file, chats.map((chat) => `${JSON.stringify(chat)}\n`).join(''))

const exact = { device: 'cpu', dtype: 'float32' } as const
const fourBit = { ...exact, quantization: 'nf4' } as const
const lora = { type: 'lora', r: 8, loraAlpha: 16, targetModules: 'all-linear', seed: 1 } as const
const outputDir = join(folder, 'run')
const args: TrainingArguments = {
  outputDir,
  maxSteps: 60,
  perDeviceTrainBatchSize: 4,
  learningRate: 0.006,
  warmupSteps: 4,
  loggingSteps: 5,
  saveSteps: 30,
  disableProgress: true,
}

const answersOf = async (model: Model, adapter?: string | null) =>
  (await model.generate(questions, { adapter, maxNewTokens: 12 })).map(({ tokenIds, text }) => ({ tokenIds, text }))

async function answersIn(source: string, options: ModelOptions, adapter?: string) {
  await using model = await Model.fromPretrained(source, options)
  if (adapter) await model.loadAdapter(adapter)
  return answersOf(model)
}

t.test('from a file of chats to a model that others load', async (t) => {
  const data = await Dataset.fromJsonl<(typeof chats)[number]>(file)
  await using model = await Model.fromPretrained(base, fourBit)
  const bare = await answersOf(model)
  model.addAdapter(lora)
  t.same(await answersOf(model), bare, 'a new adapter changes nothing')

  const logs: LogEvent[] = []
  const collator = new ChatCollator(model.tokenizer, { maxLength: 128 })
  const trainer = new Trainer({ model, trainDataset: data, collator, args })
  trainer.on('log', (event) => logs.push(event))
  const output = await trainer.train()
  t.match(output, { stopReason: 'completed', globalStep: 60, lastCheckpoint: join(outputDir, 'checkpoint-60') })
  t.ok(logs.at(-1)!.loss < 0.2 * logs[0]!.loss, `the loss falls: ${logs.map(({ loss }) => loss.toFixed(3)).join(' ')}`)
  t.equal(readFileSync(join(outputDir, 'log.jsonl'), 'utf8').trim().split('\n').length, logs.length + 1)

  const learned = await answersOf(model)
  // The story model's end token has the row of many bytes that it never saw, and its head is tied: where to end cannot be learned.
  for (const [i, answer] of Object.values(ANSWERS).entries()) t.ok(learned[i]!.text.startsWith(answer), `${learned[i]!.text}`)
  t.same(await answersOf(model, null), bare, 'the base is as it was')

  const adapter = join(folder, 'adapter')
  await model.saveAdapter(adapter)
  t.same(await answersIn(base, fourBit, adapter), learned, 'the adapter on a fresh model')
  t.same(await answersIn(base, fourBit, output.lastCheckpoint!), learned, 'a checkpoint is an adapter')

  await model.mergeAdapter('default')
  t.same(await answersOf(model), learned, 'merged')
  await model.unmergeAdapter('default')
  await model.savePretrained(join(folder, 'merged'), { mergeAdapter: true, base: 'dequantized' })
  t.same(await answersIn(join(folder, 'merged'), exact), learned, 'a model of its own, template and tokenizer included')
})

t.test('samples that are too long are counted and reported', async (t) => {
  await using model = await Model.fromPretrained(base, fourBit)
  model.addAdapter(lora)
  const collator = new ChatCollator(model.tokenizer, { maxLength: 64 })
  const long = { messages: [{ role: 'user', content: 'What does Lily have? '.repeat(9) }, chats[0]!.messages[1]!] }
  const short = { ...args, outputDir: join(folder, 'long'), maxSteps: 1, perDeviceTrainBatchSize: 5, disableProgress: false }
  const lines: string[] = []
  t.intercept(process.stderr, 'write', { value: (text: string) => lines.push(text) > 0 })
  t.intercept(process.stderr, 'isTTY', { value: false })
  const { metrics } = await new Trainer({ model, trainDataset: [...chats, long], collator, args: short }).train()
  t.match(metrics, { train_samples_truncated: Number, train_samples_without_labels: 1 })
  t.equal(metrics.train_samples_truncated, collator.truncation.truncated)
  t.match(lines.join(''), /of 5 samples were longer than maxLength, 1 of them lost their last label/)

  const only = new Trainer({ model, trainDataset: [long], collator, args: { ...short, outputDir: join(folder, 'masked') } })
  await t.rejects(only.train(), { code: 'ERR_ALL_LABELS_MASKED' })
})

t.test('a training that blows up stops, and its last checkpoint goes on', async (t) => {
  await using model = await Model.fromPretrained(base, exact)
  model.addAdapter(lora)
  const wild = { ...args, outputDir: join(folder, 'wild'), maxSteps: 12, saveSteps: 2, loggingSteps: 2 }
  const explode = (step: number) => (step < 4 ? 1 : 1e38)
  const trainer = new Trainer({ model, trainDataset: chats, args: { ...wild, lrSchedulerType: explode } })
  const error = await trainer.train().then(
    () => null,
    (reason) => reason,
  )
  t.match(error, {
    code: 'ERR_NOT_FINITE',
    message: /checkpoint-4/,
    details: { lastCheckpoint: join(wild.outputDir, 'checkpoint-4') },
  })
  t.notOk(existsSync(join(wild.outputDir, 'checkpoint-6')))
  await using again = await Model.fromPretrained(base, exact)
  again.addAdapter(lora)
  const resumed = new Trainer({ model: again, trainDataset: chats, args: wild })
  t.match(await resumed.train({ resumeFromCheckpoint: true }), { stopReason: 'completed', globalStep: 12 })
})

t.test('token ids that the model does not have end a training with their name', async (t) => {
  await using model = await Model.fromPretrained(base, fourBit)
  model.addAdapter(lora)
  const data = [{ inputIds: [1, 5, 512, 7], labels: [1, 5, 512, 7] }]
  const trainer = new Trainer({ model, trainDataset: data, args: { ...args, outputDir: join(folder, 'ids'), maxSteps: 2 } })
  await t.rejects(trainer.train(), { code: 'ERR_INVALID_ARGUMENT', message: /512/ })
  t.equal((await answersOf(model, null)).length, 4, 'the model is usable afterwards')
})
