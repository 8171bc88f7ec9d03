import { readdirSync, readFileSync } from 'node:fs'
import t from 'tap'
import type { ChatMessage } from '../../../lib/data/chat.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'

interface Case {
  messages: ChatMessage[]
  text: string
  prompt_text: string
  input_ids: number[]
  assistant_mask: number[]
  labels_reasoning_masked?: number[]
}

const fixtures = new URL('../../fixtures/chat/', import.meta.url).pathname

for (const name of readdirSync(fixtures)) {
  t.test(`${name}: rendered, encoded and masked as transformers does`, async (t) => {
    const tokenizer = await Tokenizer.fromFolder(`${fixtures}${name}/tokenizer`)
    const cases = JSON.parse(readFileSync(`${fixtures}${name}/cases.json`, 'utf8')) as Case[]
    for (const { messages, text, prompt_text, input_ids, assistant_mask } of cases) {
      t.equal(tokenizer.applyChatTemplate(messages, { tokenize: false }), text)
      const prompt = messages.slice(0, -1)
      t.equal(tokenizer.applyChatTemplate(prompt, { tokenize: false, addGenerationPrompt: true }), prompt_text)
      const rendered = tokenizer.applyChatTemplate(messages)
      t.same(rendered.inputIds, input_ids)
      t.same(rendered.assistantMask, assistant_mask)
      t.equal(tokenizer.decode(input_ids), text)
    }
  })
}
