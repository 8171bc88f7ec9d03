// Whether the fine-tuned model is still a chat model: the mean log-probability per token of the answers that the bare base gives to
// general questions, without and with the adapter.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Generator, Model } from '../../lib/index.js'
import { configure } from './config.js'
import { loading } from './progress.js'

const QUESTIONS = [
  'What is the capital of France?',
  'Who wrote Romeo and Juliet?',
  'How many days are in a week?',
  'Why is the sky blue?',
  'Give me a simple recipe for pancakes.',
  'What is photosynthesis?',
  'Write a short poem about the sea.',
  'How do I boil an egg?',
  'What is the largest planet in the solar system?',
  'Explain what a computer program is.',
  'Name three primary colors.',
  'What should I pack for a weekend at the beach?',
  'How does a bicycle stay upright?',
  'Tell me a fun fact about cats.',
  'What is the difference between a lake and a river?',
  'Suggest a name for a small bakery.',
  'What is 12 times 8?',
  'How can I sleep better?',
  'Translate "good morning" into Spanish.',
  'Who was the first person to walk on the moon?',
]
const MAX_NEW_TOKENS = 64

const { config, flags } = configure('general [--adapter FOLDER] [flags]', {
  adapter: { type: 'string', path: null, help: "folder of the adapter (default: training's)" },
})
const folder = (flags.adapter as string | undefined) ?? join(config.output, 'adapter')
if (!existsSync(folder)) throw new Error(`There is no adapter in ${folder}: train first`)

const model = await Model.fromPretrained(config.model, { ...config.load, onProgress: loading() })
await model.loadAdapter(folder, { name: 'tuned' })
const generator = new Generator(model)
const prompts = QUESTIONS.map((content) => ({ messages: [{ role: 'user', content }] }))
const answers = await generator.generate(prompts, {
  adapter: null,
  doSample: false,
  minNewTokens: 4,
  maxNewTokens: MAX_NEW_TOKENS,
})
const continuations = answers.map(({ text }) => [text])
for (const [name, adapter] of [
  ['before', null],
  ['after', 'tuned'],
] as const) {
  const scores = (await generator.score(prompts, continuations, { adapter })).flat()
  const tokens = scores.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0)
  const mean = scores.reduce((sum, { logProb }) => sum + logProb, 0) / tokens
  console.log(`${name}: mean log-probability ${mean.toFixed(4)} a token, over ${tokens} tokens of ${scores.length} answers`)
}
await model.dispose()
