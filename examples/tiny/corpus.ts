/**
 * The chats that the tiny base model learns from: reading comprehension answered in plain sentences, whether a text answers a
 * question at all, looking up notes, repeating, writing JSON from given values, and small talk. It is never asked to keep a format
 * while it reads, nor to abstain: that is what fine-tuning teaches.
 */
import type { Random } from './random.js'
import { ask, type Context, type Fact, factKey, LABELS, makeContext, tell, WORDS } from './world.js'

export interface Message {
  role: 'user' | 'assistant'
  content: string
}

const INSTRUCTION = `Extract from the following context the minimal span word for word that best answers the question. Give the answer in JSON format as follows:
\`\`\`json
{
  "answer": ...
}
\`\`\`
If the answer is not in the context, the answer should be "?".
`
const OPENINGS = [
  '{c}\n\n{q}',
  'Context: {c}\nQuestion: {q}',
  'Read this text. {c}\n{q}',
  'Answer the question with the help of the text.\n{c}\nQuestion: {q}',
  // The base model has seen such a request, but answers as it likes.
  `${INSTRUCTION}Context: {c}\nQuestion: {q}`,
]
const SMALL_TALK: readonly (readonly [string, string])[] = [
  ['Hello!', 'Hello! How can I help you?'],
  ['Hi, how are you?', 'I am fine, thank you. What can I do for you?'],
  ['Good morning.', 'Good morning! What would you like to know?'],
  ['Who are you?', 'I am a tiny chat model. I read short texts and answer questions.'],
  ['What can you do?', 'I can read a short text and answer questions about it.'],
  ['Thank you!', 'You are welcome.'],
  ['Goodbye.', 'Goodbye! Have a nice day.'],
  ['What is your name?', 'People call me Tiny.'],
  ['Tell me something nice.', 'The sun will rise again tomorrow.'],
  ['Are you a person?', 'No, I am a small computer program.'],
  ['What colour is the sky?', 'The sky is blue.'],
  ['What colour is grass?', 'Grass is green.'],
  ['What colour is snow?', 'Snow is white.'],
]
const REPEAT = ['Repeat after me: {x}', 'Please say: {x}', 'Write this down: {x}']

/** Where in training (from 0 to 1) looking up notes and reading texts begin. */
const NOTES_BEGIN = 0.22
const READING_BEGINS = 0.48

/**
 * One chat of the lesson that `progress` (0 to 1) has reached: first repeating words, then looking up notes, then reading texts. A model
 * as small as this learns to copy, to find by a key, and to find by a question only in this order; all at once it learns none of them.
 * `avoid` holds facts that must not be told (those of the test set).
 */
export function makeChat(random: Random, avoid: ReadonlySet<string>, progress = 1): Message[] {
  const kind = random.next()
  const [repeating, noting] = progress < NOTES_BEGIN ? [1, 0] : progress < READING_BEGINS ? [0.15, 0.85] : [0.04, 0.08]
  if (kind < repeating) return repeat(random)
  const context = fresh(random, avoid, textSize(random, progress))
  if (kind < repeating + noting) return notes(random, context)
  if (kind < 0.15) return exchange(random.chance(0.5) ? random.pick(SMALL_TALK) : sum(random))
  return kind < 0.18 ? json(random) : reading(random, context)
}

function exchange([question, answer]: readonly [string, string]): Message[] {
  return [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ]
}

function sum(random: Random): [string, string] {
  const [a, b] = [random.int(10), random.int(10)]
  return [`What is ${a} plus ${b}?`, `${a} plus ${b} is ${a + b}.`]
}

function repeat(random: Random): Message[] {
  const words = Array.from({ length: 4 + random.int(24) }, () => random.pick(WORDS)).join(' ')
  return exchange([random.pick(REPEAT).replace('{x}', words), words])
}

function json(random: Random): Message[] {
  const entries = Array.from({ length: 1 + random.int(3) }, () => [random.pick(WORDS), random.pick(WORDS)] as const)
  const request = entries.map(([key, value]) => `${key} is ${value}`).join(', ')
  const fields = entries.map(([key, value]) => `  "${key}": "${value}"`).join(',\n')
  return exchange([`Write this as JSON: ${request}`, `\`\`\`json\n{\n${fields}\n}\n\`\`\``])
}

/** Facts of a text: few at the beginning of a lesson, five to seven at its end. */
function textSize(random: Random, progress: number): number {
  const begin = progress < READING_BEGINS ? NOTES_BEGIN : READING_BEGINS
  const end = progress < READING_BEGINS ? READING_BEGINS : 1
  const part = (progress - begin) / (end - begin)
  const most = part < 0.3 ? 3 : part < 0.5 ? 5 : 7
  return Math.max(2, most - random.int(3))
}

function fresh(random: Random, avoid: ReadonlySet<string>, size: number): Context {
  for (;;) {
    const context = makeContext(random, size)
    if (!context.facts.some((fact) => avoid.has(factKey(fact)))) return context
  }
}

/** A list of notes, and some of them asked for. */
function notes(random: Random, { facts }: Context): Message[] {
  const note = (fact: Fact) => `${LABELS[fact.relation]} of ${fact.subject}`
  const list = facts.map((fact) => `${note(fact)}: ${fact.value}`).join('. ')
  return random
    .shuffle(facts)
    .flatMap((fact, i) => exchange([i === 0 ? `Notes. ${list}.\n${note(fact)}?` : `${note(fact)}?`, fact.value]))
}

/** A context and several questions in a row. */
function reading(random: Random, context: Context): Message[] {
  const said = (fact: Fact, answer: string) => [`Does the text say this? ${ask(random, fact)}`, answer] as const
  const turns = [
    ...random
      .shuffle(context.facts)
      .slice(0, 5)
      .map((fact) => [ask(random, fact), answer(random, fact)] as const),
    ...context.facts.slice(0, 1).map((fact) => said(fact, 'Yes, it does.')),
    ...context.missing.slice(0, 1).map((fact) => said(fact, 'No, it does not.')),
  ]
  return random.shuffle(turns).flatMap(([question, reply], i) => {
    const content = i === 0 ? random.pick(OPENINGS).replace('{c}', context.text).replace('{q}', question) : question
    return exchange([content, reply])
  })
}

/** A sentence, the bare value, or the value quoted. */
function answer(random: Random, fact: Fact): string {
  const kind = random.next()
  if (kind < 0.3) return `${fact.value}.`
  return kind < 0.6 ? `The text says "${fact.value}".` : tell(random, fact)
}
