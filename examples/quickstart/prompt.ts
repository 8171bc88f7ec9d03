import { type ChatMessage, NO_ANSWER } from '../../lib/index.js'
import type { Question } from '../squad/data.js'

/** llama-squad's instruction without its long system prompt, which would only slow a tiny model down. */
const INSTRUCTION = `Extract from the following context the minimal span word for word that best answers the question. Give the answer in JSON format as follows:
\`\`\`json
{
  "answer": ...
}
\`\`\`
If the answer is not in the context, the answer should be "${NO_ANSWER}".
`

export function toPrompt({ context, question }: Question): ChatMessage[] {
  return [{ role: 'user', content: `${INSTRUCTION}Context: ${context}\nQuestion: ${question}` }]
}

/** The chat that the model should have had. */
export function toExample(question: Question): { messages: ChatMessage[] } {
  const answer = `\`\`\`json\n{\n  "answer": ${JSON.stringify(question.answers[0])}\n}\n\`\`\``
  return { messages: [...toPrompt(question), { role: 'assistant', content: answer }] }
}
