// SQuAD 2.0 as chats.
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type ChatMessage, NO_ANSWER } from '../../lib/index.js'

export interface Question {
  id: string
  context: string
  question: string
  /** All correct answers, "?" alone where the context holds none. */
  answers: string[]
}

/** A line of the data sets that create-dataset writes. */
export interface Example {
  id: string
  /** The same for all questions on one context. */
  group: string
  messages: ChatMessage[]
  answers: string[]
}

interface SquadFile {
  data: {
    paragraphs: {
      context: string
      qas: { id: string; question: string; is_impossible?: boolean; answers: { text: string }[] }[]
    }[]
  }[]
}

/** The questions of a paragraph, which share its context. */
export async function readSquad(path: string): Promise<Question[][]> {
  const file = JSON.parse(await readFile(path, 'utf8')) as SquadFile
  return file.data.flatMap(({ paragraphs }) =>
    paragraphs.map(({ context, qas }) =>
      qas.map(({ id, question, answers }) => ({
        id,
        context: context.trim(),
        question: question.trim(),
        answers: answers.length > 0 ? answers.map(({ text }) => text) : [NO_ANSWER],
      })),
    ),
  )
}

/** The folder's file of a split, by SQuAD's own name or the short one. */
export function squadFile(folder: string, split: 'train' | 'dev'): string {
  const paths = [join(folder, `${split}.json`), join(folder, `${split}-v2.0.json`)]
  const path = paths.find((candidate) => existsSync(candidate))
  if (!path)
    throw new Error(`There is no ${paths.join(' or ')}: SQuAD 2.0's files are at https://rajpurkar.github.io/SQuAD-explorer/`)
  return path
}

// llama-squad's prompt, word for word.
const SYSTEM = `You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in nature.
If a question does not make any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't know the answer to a question, please don't share false information.
`
const INSTRUCTION = `Extract from the following context the minimal span word for word that best answers the question. Think step by step and explain your reasoning. Then give the answer in JSON format as follows:
\`\`\`json
{
  "answer": ...
}
\`\`\`
If the answer is not in the context, the answer should be "?".
`
const CONTAINED = `Read the following context and question. Does the context contain the answer to the question? Answer only "yes" or "no".
`
const EXTRACT = `Extract from the context the minimal span word for word that best answers the question. Give the answer in JSON format as follows:
\`\`\`json
{
  "answer": ...
}
\`\`\`
If the answer is not in the context, the answer should be "?".
`
/** How every answer begins. What follows, a space and a quote, is one token in most vocabularies and left to the model. */
export const ANSWER_START = '```json\n{\n  "answer":'

export interface ChatOptions {
  turns: 'single' | 'multi'
  /** The reasoning tokens that stand before an answer; '' for none. */
  reasoning: string
}

/** A question as the chat that a model should have had. */
export function toChat({ context, question, answers }: Question, { turns, reasoning }: ChatOptions): ChatMessage[] {
  const asked = `Context: ${context}\nQuestion: ${question}\n`
  const answer = `${reasoning}${ANSWER_START} ${JSON.stringify(answers[0])}\n}\n\`\`\``
  const system = { role: 'system', content: SYSTEM }
  const user = (content: string) => ({ role: 'user', content })
  const assistant = (content: string) => ({ role: 'assistant', content })
  if (turns === 'single') return [system, user(INSTRUCTION + asked), assistant(answer)]
  const contained = answers[0] === NO_ANSWER ? 'no' : 'yes'
  return [system, user(CONTAINED + asked), assistant(reasoning + contained), user(EXTRACT), assistant(answer)]
}

/** How a data set was made; written beside it, so that training and evaluation use the same tokens. */
export interface DatasetSettings {
  turns: 'single' | 'multi'
  reasoningTokens: number
  numberedTokens: boolean
}

export function datasetFile(output: string, name: 'train' | 'validation' | 'test'): string {
  return join(output, 'dataset', `${name}.jsonl`)
}

export function settingsFile(output: string): string {
  return join(output, 'dataset', 'settings.json')
}

export async function readSettings(output: string): Promise<DatasetSettings> {
  const path = settingsFile(output)
  if (!existsSync(path)) throw new Error(`There is no data set in ${output}: make it with create-dataset`)
  return JSON.parse(await readFile(path, 'utf8')) as DatasetSettings
}

/** The reasoning tokens of a data set: the text that stands before an answer, and the distinct tokens in it. */
export function reasoningTokens({ reasoningTokens: count, numberedTokens }: DatasetSettings) {
  const names = Array.from({ length: count }, (_, i) => (numberedTokens ? `<blah_${i}>` : '<blah>'))
  return { text: names.join(''), tokens: [...new Set(names)] }
}
