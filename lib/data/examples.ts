import { invalidArgument } from '../errors.js'
import { isJsonObject } from '../formats/json.js'
import { IGNORE_LABEL } from './batch.js'
import { type ChatMessage, maskOf } from './chat.js'
import type { Tokenizer } from './tokenizer.js'

/**
 * What a {@link ChatCollator} takes: a chat; a prompt with its completion (both text, or both messages); raw text; or token ids, all of
 * which are labelled unless `labels` says otherwise (-100: no loss).
 */
export type TrainingExample =
  | { messages: readonly ChatMessage[]; tools?: readonly unknown[] | null }
  | { prompt: string; completion: string }
  | { prompt: readonly ChatMessage[]; completion: readonly ChatMessage[]; tools?: readonly unknown[] | null }
  | { text: string }
  | { inputIds: ArrayLike<number>; labels?: ArrayLike<number> }

/** A sample as token ids with a label per token. */
export interface EncodedExample {
  inputIds: Int32Array
  labels: Int32Array
}

export interface EncodeExampleOptions {
  assistantOnlyLoss: boolean
  completionOnlyLoss: boolean
  chatTemplate: string | undefined
  templateVariables: Readonly<Record<string, unknown>>
}

interface Masked {
  ids: ArrayLike<number>
  /** 1 where there is loss. */
  mask: ArrayLike<number>
}

/** Turns an example into token ids and labels. @throws ERR_INVALID_ARGUMENT when it has none of the known forms */
export function encodeExample(tokenizer: Tokenizer, example: TrainingExample, options: EncodeExampleOptions): EncodedExample {
  if (!isJsonObject(example)) {
    const hint = typeof example === 'string' ? '; a text is { text }' : ''
    throw invalidArgument(`an example must be an object${hint}`, { received: typeof example })
  }
  if ('inputIds' in example) return fromIds(example)
  const { ids, mask } = fromText(tokenizer, example, options)
  return {
    inputIds: Int32Array.from(ids),
    labels: Int32Array.from(ids, (id, t) => (mask[t] ? id : IGNORE_LABEL)),
  }
}

function fromIds({ inputIds, labels }: { inputIds: ArrayLike<number>; labels?: ArrayLike<number> }): EncodedExample {
  if (labels && labels.length !== inputIds.length) {
    throw invalidArgument(`labels must have one entry per token: expected ${inputIds.length}, got ${labels.length}`)
  }
  const wrong = Array.from(inputIds).findIndex((id) => !Number.isInteger(id) || id < 0)
  if (wrong >= 0) throw invalidArgument(`inputIds[${wrong}] must be a token id, got ${String(inputIds[wrong])}`)
  return { inputIds: Int32Array.from(inputIds), labels: Int32Array.from(labels ?? inputIds) }
}

function fromText(
  tokenizer: Tokenizer,
  example: Exclude<TrainingExample, { inputIds: ArrayLike<number> }>,
  options: EncodeExampleOptions,
): Masked {
  const templating = { ...options.templateVariables, chatTemplate: options.chatTemplate }
  if ('messages' in example) {
    const chat = tokenizer.applyChatTemplate(example.messages, { ...templating, tools: example.tools })
    return { ids: chat.inputIds, mask: options.assistantOnlyLoss ? chat.assistantMask : chat.inputIds.map(() => 1) }
  }
  if ('text' in example && typeof example.text === 'string') {
    const ids = withEnd(tokenizer, tokenizer.encode(example.text))
    return { ids, mask: ids.map(() => 1) }
  }
  if (!('prompt' in example && 'completion' in example)) {
    throw invalidArgument('an example must have messages, prompt and completion, text, or inputIds', {
      keys: Object.keys(example),
    })
  }
  const { prompt, completion } = example
  if (typeof prompt === 'string' && typeof completion === 'string') return continuation(tokenizer, prompt, completion, options)
  if (typeof prompt === 'string' || typeof completion === 'string') {
    throw invalidArgument('prompt and completion must both be text or both be messages')
  }
  const tools = 'tools' in example ? example.tools : null
  const chat = tokenizer.applyChatTemplate([...prompt, ...completion], { ...templating, tools })
  if (!options.completionOnlyLoss) return { ids: chat.inputIds, mask: chat.inputIds.map(() => 1) }
  const start = tokenizer.applyChatTemplate(prompt, { ...templating, tools, tokenize: false, addGenerationPrompt: true })
  if (!chat.text.startsWith(start)) {
    throw invalidArgument('the chat template renders the prompt differently when it stands alone')
  }
  const after = maskOf(tokenizer, chat.inputIds, chat.text, [[start.length, chat.text.length]])
  return { ids: chat.inputIds, mask: chat.assistantMask.map((value, t) => value & after[t]!) }
}

/** Raw text after raw text: encoded at once, so the border falls where the tokenizer puts it; a token across it counts as completion. */
function continuation(
  tokenizer: Tokenizer,
  prompt: string,
  completion: string,
  { completionOnlyLoss }: EncodeExampleOptions,
): Masked {
  const text = prompt + completion
  const encoded = tokenizer.encode(text)
  const ids = withEnd(tokenizer, encoded)
  if (!completionOnlyLoss) return { ids, mask: ids.map(() => 1) }
  const mask = maskOf(tokenizer, encoded, text, [[prompt.length, text.length]])
  return { ids, mask: ids.map((_, t) => mask[t] ?? 1) }
}

/** Ends with the end-of-sequence token, so that the model learns to stop. */
function withEnd(tokenizer: Tokenizer, ids: number[]): number[] {
  const end = tokenizer.eosTokenId
  return end === null || ids.at(-1) === end ? ids : [...ids, end]
}
