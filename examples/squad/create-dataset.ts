// Turns SQuAD 2.0 into chats: OUTPUT/dataset/{train,validation,test}.jsonl.
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { Dataset, NO_ANSWER } from '../../lib/index.js'
import { configure, DATASET_FLAGS } from './config.js'
import {
  type DatasetSettings,
  datasetFile,
  type Example,
  type Question,
  readSquad,
  reasoningTokens,
  settingsFile,
  squadFile,
  toChat,
} from './data.js'

const { config } = configure('create-dataset [flags]', DATASET_FLAGS)
const { turns, reasoningTokens: count, numberedTokens, every, validation, seed } = config.dataset
const settings: DatasetSettings = { turns, reasoningTokens: count, numberedTokens }
const reasoning = reasoningTokens(settings).text
await mkdir(dirname(settingsFile(config.output)), { recursive: true })
await writeFile(settingsFile(config.output), JSON.stringify(settings))

let counter = 0
const contexts = (await readSquad(squadFile(config.data, 'train')))
  .map((questions) => questions.filter(() => counter++ % every === 0))
  .filter((questions) => questions.length > 0)
// Whole contexts go to one side, so that validation asks about texts that training has not seen.
const parts =
  validation > 0
    ? Dataset.from(contexts).trainTestSplit({ testSize: validation, seed })
    : { train: Dataset.from(contexts), test: Dataset.from<Question[]>([]) }
await write('train', await parts.train.toArray())
await write('validation', await parts.test.toArray())
await write('test', await readSquad(squadFile(config.data, 'dev')))

async function write(name: 'train' | 'validation' | 'test', contexts: readonly (readonly Question[])[]): Promise<void> {
  const examples = contexts.flatMap((questions, group) =>
    questions.map((question): Example => {
      const messages = toChat(question, { turns, reasoning })
      return { id: question.id, group: String(group), messages, answers: question.answers }
    }),
  )
  const path = datasetFile(config.output, name)
  await writeFile(path, examples.map((example) => `${JSON.stringify(example)}\n`).join(''))
  const unanswerable = examples.filter(({ answers }) => answers[0] === NO_ANSWER).length
  console.log(`${path}: ${examples.length} questions, ${unanswerable} of them without an answer`)
}
