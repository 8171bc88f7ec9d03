import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ChatMessage } from '../../lib/data/chat.js'
import { ChatCollator } from '../../lib/data/chat-collator.js'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { differences, type Figure, Figures, type GoldenCase } from './result.js'

interface ChatCase {
  messages: ChatMessage[]
  text: string
  prompt_text: string
  input_ids: number[]
  assistant_mask: number[]
  labels_reasoning_masked?: number[]
}

const NO_LOSS = -100

/** `chat/TEMPLATE`: rendered text, ids, the assistant's spans, labels. */
export function chatCases(folder: string): GoldenCase[] {
  const directory = join(folder, 'chat')
  if (!existsSync(directory)) return []
  const cases = readdirSync(directory).filter((name) => existsSync(join(directory, name, 'cases.json')))
  return cases.sort().map((name) => ({ name: `chat/${name}`, run: () => runChat(join(directory, name)) }))
}

async function runChat(directory: string): Promise<Figure[]> {
  const tokenizer = await Tokenizer.fromFolder(join(directory, 'tokenizer'))
  const figures = new Figures()
  for (const golden of JSON.parse(readFileSync(join(directory, 'cases.json'), 'utf8')) as ChatCase[]) {
    const { messages } = golden
    const text = tokenizer.applyChatTemplate(messages, { tokenize: false })
    figures.add('different characters', differences(text, golden.text), 0)
    const { inputIds, assistantMask } = tokenizer.applyChatTemplate(messages, { tokenize: true })
    figures.add('different ids', differences(inputIds, golden.input_ids), 0)
    figures.add('different mask', differences(assistantMask, golden.assistant_mask), 0)
    const lastAnswer = messages.findLastIndex((message) => message.role === 'assistant')
    const question = messages.slice(
      0,
      messages.findIndex((message) => message.role === 'assistant'),
    )
    if (lastAnswer >= 0 && golden.prompt_text !== undefined) {
      const prompts = [question, messages.slice(0, lastAnswer)].map((part) =>
        tokenizer.applyChatTemplate(part, { tokenize: false, addGenerationPrompt: true }),
      )
      figures.add('different prompt', Math.min(...prompts.map((prompt) => differences(prompt, golden.prompt_text))), 0)
    }
    const masked = golden.labels_reasoning_masked
    if (masked) figures.add('different labels', differences(await labelsOf(tokenizer, golden), masked), 0)
  }
  return figures.all()
}

/** The labels that the collator gives a chat, put back in their places. */
async function labelsOf(tokenizer: Tokenizer, { messages, input_ids: ids }: ChatCase): Promise<number[]> {
  const collator = new ChatCollator(tokenizer, { ignoreTokens: ['<blah>'] })
  const { sampleRows, targetRows, targetIds } = await collator.collate([{ messages }])
  const labels = ids.map(() => NO_LOSS)
  for (const [i, row] of targetRows.entries()) labels[sampleRows[0]!.indexOf(row) + 1] = targetIds[i]!
  return labels
}
