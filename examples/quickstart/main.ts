/**
 * The quickstart: teaches a tiny chat model to answer word for word in JSON, and to say "?" where the text holds no answer.
 *
 * usage: npm start [-- --output FOLDER] [--max-steps N] [--tiny FOLDER_WITH_MODEL_AND_DATA]
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import {
  ChatCollator,
  type EvaluationRow,
  EvaluationWriter,
  exactMatch,
  extractAnswer,
  Generator,
  Model,
  type Summary,
  summarize,
  Trainer,
} from '../../lib/index.js'
import { writeCurve } from '../squad/curve.js'
import { type Question, readSquad } from '../squad/data.js'
import { openBar } from '../squad/progress.js'
import { renderTable } from '../squad/table.js'
import { toExample, toPrompt } from './prompt.js'
import { oneLine, paragraph, Screen, showQuestion } from './screen.js'

/** Compiled, this program lies in dist/examples/quickstart. */
const TINY = resolve(dirname(fileURLToPath(import.meta.url)), '../../../examples/tiny')
const MAX_NEW_TOKENS = 40
const QUESTIONS_AT_ONCE = 64
const ASK_EVERY = 20

interface Settings {
  output: string
  maxSteps: number
  /** Folder with model/ and data/. */
  tiny: string
}

async function main(settings: Settings): Promise<void> {
  const { output, tiny } = settings
  mkdirSync(output, { recursive: true })
  const model = await Model.fromPretrained(join(tiny, 'model'), { device: 'cpu', quantization: 'nf4' })
  const generator = new Generator(model)
  const train = await readSquad(join(tiny, 'data/train.json'))
  const test = (await readSquad(join(tiny, 'data/dev.json'))).flat()
  const chosen = test.find(({ answers }) => answers[0] !== '?')!
  const ask = (numBeams = 1) => generator.generate({ messages: toPrompt(chosen) }, { maxNewTokens: MAX_NEW_TOKENS, numBeams })

  console.log('A chat model that can read, but was never taught to answer in a fixed format:\n')
  showQuestion(chosen)
  const first = await ask()
  console.log(paragraph('base model', first.text))

  console.log(`\nIts answers to ${test.length} questions about texts that training will not see:`)
  const before = await evaluate(generator, test, join(output, 'before.csv'))
  console.log(renderTable([['before', before]]))

  console.log('\nFine-tuning: the weights in 4 bits (NF4, double quantization), trained are low-rank adapters (LoRA) alone.\n')
  model.addAdapter({ type: 'lora', r: 16, loraAlpha: 32, targetModules: 'all-linear', seed: 1 })
  await fineTune(model, train, settings, async () => (await ask()).text)
  await model.saveAdapter(join(output, 'adapter'))
  await writeCurve(join(output, 'log.jsonl'), join(output, 'curve.svg'), 'Fine-tuning the tiny chat model')

  const after = await evaluate(generator, test, join(output, 'after.csv'))
  console.log('The same question again:\n')
  showQuestion(chosen)
  console.log(paragraph('before', first.text))
  console.log(paragraph('after', (await ask()).text))
  console.log(paragraph('10 beams', (await ask(10)).text))
  console.log(
    `\n${renderTable([
      ['before', before],
      ['after', after],
    ])}\n`,
  )
  for (const [what, name] of [
    ['adapter', 'adapter'],
    ['answers', 'after.csv'],
    ['loss curve', 'curve.svg'],
  ] as const) {
    console.log(paragraph(what, relative(process.cwd(), join(output, name))))
  }
  await model.dispose()
}

/** Answers all questions and writes a row for each; those on one text share its computation. */
async function evaluate(generator: Generator, questions: readonly Question[], path: string): Promise<Summary> {
  writeFileSync(path, '')
  const writer = await EvaluationWriter.open(path)
  const bar = openBar('answering', questions.length)
  const rows: EvaluationRow[] = []
  for (let at = 0; at < questions.length; at += QUESTIONS_AT_ONCE) {
    const part = questions.slice(at, at + QUESTIONS_AT_ONCE)
    const generations = await generator.generate(
      part.map((question) => ({ messages: toPrompt(question) })),
      { maxNewTokens: MAX_NEW_TOKENS },
    )
    const answered = part.map(({ id, question, answers }, i) => {
      const response = generations[i]!.text
      const answer = extractAnswer(response)
      return { id, prompt: question, answers, answer, response, exactMatch: exactMatch(answer, answers) }
    })
    await writer.append(answered)
    rows.push(...answered)
    bar.update(rows.length)
  }
  bar.stop()
  await writer.close()
  return summarize(rows)
}

async function fineTune(
  model: Model,
  contexts: readonly Question[][],
  { output, maxSteps }: Settings,
  ask: () => Promise<string>,
) {
  const screen = new Screen()
  const trainer = new Trainer({
    model,
    trainDataset: contexts.flat().map(toExample),
    collator: new ChatCollator(model.tokenizer),
    callbacks: {
      onStepEnd: async ({ step }) => {
        if (step % ASK_EVERY === 0) screen.answered(step, oneLine(await ask()))
      },
    },
    args: {
      outputDir: output,
      maxSteps,
      perDeviceTrainBatchSize: 32,
      trainSamplingStrategy: 'group_by_prefix',
      learningRate: 5e-3,
      lrSchedulerType: 'cosine',
      warmupSteps: 10,
      loggingSteps: 1,
      saveStrategy: 'no',
      disableProgress: true,
      seed: 1,
    },
  })
  trainer.on('log', ({ step, loss }) => screen.progress(step, maxSteps, loss))
  await trainer.train()
  screen.end()
  await trainer.dispose()
}

const { values } = parseArgs({
  options: {
    output: { type: 'string', default: 'runs/quickstart' },
    'max-steps': { type: 'string', default: '400' },
    tiny: { type: 'string', default: TINY },
  },
})
await main({ output: resolve(values.output), maxSteps: Number(values['max-steps']), tiny: values.tiny })
