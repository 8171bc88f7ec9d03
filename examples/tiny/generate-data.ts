/**
 * Writes the bundled data set in SQuAD 2.0's layout: data/train.json and data/dev.json. No fact of a test context occurs in training.
 *
 * usage: node dist/examples/tiny/generate-data.js [FOLDER]
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Random } from './random.js'
import { ask, type Context, factKey, makeContext } from './world.js'

interface Question {
  id: string
  question: string
  answers: { text: string; answer_start: number }[]
  is_impossible: boolean
}

interface Article {
  title: string
  paragraphs: { context: string; qas: Question[] }[]
}

const CONTEXTS_PER_ARTICLE = 20
export const TRAIN = { seed: 1, contexts: 600, title: 'train' }
export const DEV = { seed: 2, contexts: 40, title: 'dev' }

/** Five to eight questions on a context, about a third of them without an answer in it. */
function questions(random: Random, context: Context, prefix: string): Question[] {
  const count = 5 + random.int(4)
  const unanswerable = Math.min(context.missing.length, Math.floor(count / 3 + random.next()))
  const answerable = random.shuffle(context.facts).slice(0, count - unanswerable)
  const out = answerable.map((fact) => ({
    question: ask(random, fact),
    answers: [{ text: fact.value, answer_start: fact.start }],
    is_impossible: false,
  }))
  const without = context.missing
    .slice(0, unanswerable)
    .map((fact) => ({ question: ask(random, fact), answers: [], is_impossible: true }))
  return random
    .shuffle<Omit<Question, 'id'>>([...out, ...without])
    .map((question, i) => ({ id: `${prefix}-${i}`, ...question }))
}

export function generate(seed: number, contexts: number, title: string, avoid: ReadonlySet<string>) {
  const random = new Random(seed)
  const data: Article[] = []
  const facts = new Set<string>()
  for (let made = 0; made < contexts; ) {
    const context = makeContext(random)
    if (context.facts.some((fact) => avoid.has(factKey(fact)))) continue
    if (made % CONTEXTS_PER_ARTICLE === 0) data.push({ title: `${title} ${data.length + 1}`, paragraphs: [] })
    data[data.length - 1]!.paragraphs.push({ context: context.text, qas: questions(random, context, `${title}-${made}`) })
    for (const fact of context.facts) facts.add(factKey(fact))
    made++
  }
  return { squad: { version: 'v2.0', data }, facts }
}

function main(folder: string): void {
  mkdirSync(folder, { recursive: true })
  const train = generate(TRAIN.seed, TRAIN.contexts, TRAIN.title, new Set())
  const dev = generate(DEV.seed, DEV.contexts, DEV.title, train.facts)
  for (const [name, { squad }] of Object.entries({ train, dev })) {
    writeFileSync(join(folder, `${name}.json`), `${JSON.stringify(squad)}\n`)
    const qas = squad.data.flatMap(({ paragraphs }) => paragraphs.flatMap((paragraph) => paragraph.qas))
    const none = qas.filter((question) => question.is_impossible).length
    console.log(`${name}.json: ${qas.length} questions, ${none} without an answer`)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(process.argv[2] ?? 'examples/tiny/data')
