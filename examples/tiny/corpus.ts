/**
 * The chats that the tiny base model learns from: reading comprehension answered in plain sentences, whether a text answers a
 * question at all, repeating, and small talk. Never JSON, never abstaining: that is what fine-tuning teaches.
 */
import type { Random } from './random.js'
import { ask, type Context, type Fact, factKey, makeContext, tell } from './world.js'

export interface Message {
  role: 'user' | 'assistant'
  content: string
}

const OPENINGS = [
  '{c}\n\n{q}',
  'Context: {c}\nQuestion: {q}',
  'Read this text. {c}\n{q}',
  'Extract the answer from the context.\nContext: {c}\nQuestion: {q}',
  'Answer the question with the help of the text.\n{c}\nQuestion: {q}',
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
]
const REPEAT = ['Repeat after me: {x}', 'Please say: {x}', 'Write this down: {x}']

/**
 * One chat. Texts grow with `progress` (0 to 1): reading two sentences is learnt much sooner than reading seven, and is of use for it.
 * `avoid` holds facts that must not be told (those of the test set).
 */
export function makeChat(random: Random, avoid: ReadonlySet<string>, progress = 1): Message[] {
  const kind = random.next()
  if (kind < 0.05) return exchange(random.pick(SMALL_TALK))
  const context = fresh(random, avoid, textSize(random, progress))
  if (kind < 0.12) {
    const words = context.text.split(' ')
    const start = random.int(Math.max(1, words.length - 8))
    const part = words.slice(start, start + 2 + random.int(7)).join(' ')
    return exchange([random.pick(REPEAT).replace('{x}', part), part])
  }
  return reading(random, context)
}

function exchange([question, answer]: readonly [string, string]): Message[] {
  return [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ]
}

/** Sentences of a text: two or three at first, five to seven at the end. */
function textSize(random: Random, progress: number): number {
  const most = progress < 0.2 ? 3 : progress < 0.4 ? 5 : 7
  return Math.max(2, most - random.int(3))
}

function fresh(random: Random, avoid: ReadonlySet<string>, size: number): Context {
  for (;;) {
    const context = makeContext(random, size)
    if (!context.facts.some((fact) => avoid.has(factKey(fact)))) return context
  }
}

/** A context and several questions in a row. */
function reading(random: Random, context: Context): Message[] {
  const turns = [
    ...random
      .shuffle(context.facts)
      .slice(0, 5)
      .map((fact) => [ask(random, fact), answer(random, fact)] as const),
    ...context.facts.slice(0, 2).map((fact) => [`Does the text say this? ${ask(random, fact)}`, 'Yes, it does.'] as const),
    ...context.missing.slice(0, 2).map((fact) => [`Does the text say this? ${ask(random, fact)}`, 'No, it does not.'] as const),
  ]
  return random.shuffle(turns).flatMap(([question, reply], i) => {
    const content = i === 0 ? random.pick(OPENINGS).replace('{c}', context.text).replace('{q}', question) : question
    return exchange([content, reply])
  })
}

/** A sentence, the bare value, or the value quoted. */
function answer(random: Random, fact: Fact): string {
  const kind = random.next()
  if (kind < 0.3) return `${fact.value.charAt(0).toUpperCase()}${fact.value.slice(1)}.`
  return kind < 0.6 ? `The text says "${fact.value}".` : tell(random, fact)
}
