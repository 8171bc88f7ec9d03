// Shows training chats with what the model learns to say in green.
import { ChatCollator, Dataset, Tokenizer } from '../../lib/index.js'
import { configure } from './config.js'
import { datasetFile, type Example, readSettings, reasoningTokens } from './data.js'

const { config, flags } = configure('show-labels [--count 3] [--tokenizer FOLDER] [flags]', {
  count: { type: 'number', path: null, help: 'chats to show (default: 3)' },
  tokenizer: { type: 'string', path: null, help: "folder of the tokenizer (default: the model's)" },
})
const { tokens } = reasoningTokens(await readSettings(config.output))
const tokenizer = await Tokenizer.fromFolder((flags.tokenizer as string | undefined) ?? config.model)
tokenizer.addTokens(tokens)
const collator = new ChatCollator(tokenizer, { maxLength: config.maxLength, ignoreTokens: tokens })
const examples = await Dataset.fromJsonl<Example>(datasetFile(config.output, 'train'))
const count = Math.min(Number(flags.count ?? 3), examples.length)
for (let i = 0; i < count; i++) {
  const example = await examples.at(Math.floor((i * examples.length) / count))
  console.log(`${collator.explain(example)}\n${'─'.repeat(80)}`)
}
