// Answers OUTPUT/dataset/test.jsonl and appends a row per question to OUTPUT/NAME.csv; an interrupted evaluation goes on where it was.
import { existsSync } from 'node:fs'
import { mkdir, rename, stat } from 'node:fs/promises'
import { join } from 'node:path'
import {
  type ChatMessage,
  Dataset,
  EvaluationWriter,
  exactMatch,
  extractAnswer,
  type GenerationConfig,
  Generator,
  Model,
  summarize,
} from '../../lib/index.js'
import { configure, EVALUATION_FLAGS } from './config.js'
import { ANSWER_START, datasetFile, type Example, readSettings, reasoningTokens } from './data.js'
import { loading, openBar } from './progress.js'
import { renderTable } from './table.js'

const { config, flags } = configure('evaluate [--name after] [--adapter FOLDER|none] [--limit N] [flags]', {
  ...EVALUATION_FLAGS,
  name: { type: 'string', path: null, help: 'of the CSV file (default: after, or before without an adapter)' },
  adapter: { type: 'string', path: null, help: "folder of the adapter, or none (default: training's)" },
  limit: { type: 'number', path: null, help: 'ask so many questions, evenly spaced' },
})
const adapter = (flags.adapter as string | undefined) ?? join(config.output, 'adapter')
const bare = adapter === 'none'
if (!bare && !existsSync(adapter)) throw new Error(`There is no adapter in ${adapter}: train first, or say --adapter none`)
const name = (flags.name as string | undefined) ?? (bare ? 'before' : 'after')
const reasoning = reasoningTokens(await readSettings(config.output))

await mkdir(config.output, { recursive: true })
const path = join(config.output, `${name}.csv`)
if (!bare) await putAsideOlder(path, join(adapter, 'adapter_model.safetensors'))
const writer = await EvaluationWriter.open(path)
const done = new Set(writer.done.map(({ id }) => id))
const all = await (await Dataset.fromJsonl<Example>(datasetFile(config.output, 'test'))).toArray()
const limit = Math.min(flags.limit === undefined ? all.length : Number(flags.limit), all.length)
const asked = Array.from({ length: limit }, (_, i) => all[Math.floor((i * all.length) / limit)]!)
const pending = asked.filter(({ id }) => !done.has(id))
if (done.size > 0) console.log(`${path} has ${done.size} answers already`)

const rows = [...writer.done]
if (pending.length > 0) {
  const model = await Model.fromPretrained(config.model, { ...config.load, onProgress: loading() })
  if (!bare) await model.loadAdapter(adapter)
  else if (reasoning.tokens.length > 0) model.addTokens(reasoning.tokens, { trainable: false, predictable: false })
  const generator = new Generator(model)
  const bar = openBar(`answering (${name})`, asked.length, asked.length - pending.length)
  const { batchSize } = config.evaluation
  // Questions on one context stand side by side in the file, so a batch computes each context once.
  for (let at = 0; at < pending.length; at += batchSize) {
    const batch = pending.slice(at, at + batchSize)
    const answered = await answer(generator, batch)
    await writer.append(answered)
    rows.push(...answered)
    const right = rows.filter((row) => row.exactMatch).length
    bar.update(asked.length - pending.length + at + batch.length, `| ${((100 * right) / rows.length).toFixed(1)} % exact`)
  }
  bar.stop()
  await model.dispose()
}
await writer.close()
console.log(renderTable([[name, summarize(rows)]]))
console.log(path)

/** Answers of an adapter that has been trained anew since are not continued. */
async function putAsideOlder(csv: string, adapterFile: string): Promise<void> {
  if (!existsSync(csv) || (await stat(csv)).mtimeMs >= (await stat(adapterFile)).mtimeMs) return
  const previous = csv.replace(/csv$/, 'previous.csv')
  await rename(csv, previous)
  console.log(`the adapter is newer than ${csv}: answering anew, the former answers are in ${previous}`)
}

/** Goes through the chats turn by turn, all of them together; the model's earlier answers stand in the later prompts. */
async function answer(generator: Generator, examples: readonly Example[]) {
  const histories: ChatMessage[][] = examples.map(() => [])
  const said: string[][] = examples.map(() => [])
  const prompts: string[] = examples.map(() => '')
  const turns = examples[0]!.messages.length
  for (let turn = 0; turn < turns; turn++) {
    if (examples[0]!.messages[turn]!.role !== 'assistant') {
      for (const [i, { messages }] of examples.entries()) histories[i]!.push(messages[turn]!)
      continue
    }
    for (const [i, messages] of histories.entries()) {
      prompts[i] = generator.model.tokenizer.applyChatTemplate(messages, { tokenize: false, addGenerationPrompt: true })
    }
    const last = turn === turns - 1
    const options: GenerationConfig = {
      ...config.evaluation.generation,
      forcedPrefix: reasoning.text + (last && config.evaluation.forcedStart ? ANSWER_START : ''),
    }
    const generations = await generator.generate(
      histories.map((messages) => ({ messages })),
      options,
    )
    for (const [i, { text }] of generations.entries()) {
      said[i]!.push(text)
      histories[i]!.push({ role: 'assistant', content: text })
    }
  }
  return examples.map(({ id, answers }, i) => {
    const answer = extractAnswer(said[i]!.at(-1)!)
    return { id, prompt: prompts[i]!, answers, answer, response: said[i]!.join('\n'), exactMatch: exactMatch(answer, answers) }
  })
}
