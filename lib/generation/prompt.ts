import type { ChatMessage, Tokenizer } from '../data/tokenizer.js'
import { invalidArgument, QuantuneError } from '../errors.js'

/** Raw text; a chat, rendered by the tokenizer's template; or token ids as they are. */
export type Prompt = string | { messages: readonly ChatMessage[]; tools?: readonly unknown[] } | { inputIds: ArrayLike<number> }

/** A prompt as the model reads it. */
export interface EncodedPrompt {
  inputIds: Int32Array
  /** Tokens before the answer that its text joins on to: none where the answer is a text of its own. */
  context: number[]
  /** The answer's given start. */
  forcedPrefix: string
}

export interface Limits {
  /** Positions that the model has. */
  contextLength: number
  /** Token ids that the model knows. */
  vocabSize: number
}

/**
 * Encodes a prompt with the start of its answer. Special tokens (a begin-of-sequence token) are added to raw text that does not start
 * with them; a rendered chat and token ids stay as they are.
 * @throws ERR_INVALID_ARGUMENT for a prompt that is empty or holds unknown token ids; ERR_CONTEXT_LENGTH where no room is left for an answer
 */
export function encodePrompt(
  tokenizer: Tokenizer | null,
  prompt: Prompt,
  options: { forcedPrefix: string; continueFinalMessage: boolean; needsRoom?: boolean },
  limits: Limits,
): EncodedPrompt {
  const encoded = encode(tokenizer, prompt, options)
  checkIds(encoded.inputIds, limits, options.needsRoom ?? true)
  return encoded
}

function encode(
  tokenizer: Tokenizer | null,
  prompt: Prompt,
  { forcedPrefix, continueFinalMessage }: { forcedPrefix: string; continueFinalMessage: boolean },
): EncodedPrompt {
  const isChat = typeof prompt === 'object' && prompt !== null && 'messages' in prompt
  if (continueFinalMessage && !isChat) {
    throw invalidArgument('GenerationConfig.continueFinalMessage needs a prompt with messages')
  }
  if (typeof prompt === 'string') {
    const inputIds = encodeText(needTokenizer(tokenizer), prompt + forcedPrefix)
    return { inputIds: Int32Array.from(inputIds), context: inputIds, forcedPrefix }
  }
  if (isChat) {
    const { messages, tools } = prompt
    const text = needTokenizer(tokenizer).applyChatTemplate(messages, {
      tokenize: false,
      addGenerationPrompt: !continueFinalMessage,
      continueFinalMessage,
      ...(tools ? { tools } : {}),
    })
    const inputIds = needTokenizer(tokenizer).encode(text + forcedPrefix, { addSpecialTokens: false })
    const joins = forcedPrefix !== '' || continueFinalMessage
    return { inputIds: Int32Array.from(inputIds), context: joins ? inputIds : [], forcedPrefix }
  }
  if (typeof prompt === 'object' && prompt !== null && 'inputIds' in prompt) {
    const start = forcedPrefix === '' ? [] : needTokenizer(tokenizer).encode(forcedPrefix, { addSpecialTokens: false })
    const inputIds = [...Array.from(prompt.inputIds), ...start]
    const wrong = inputIds.findIndex((id) => !Number.isInteger(id))
    if (wrong >= 0) throw invalidArgument(`prompt.inputIds[${wrong}] must be a token id, got ${String(inputIds[wrong])}`)
    return { inputIds: Int32Array.from(inputIds), context: inputIds, forcedPrefix }
  }
  throw invalidArgument('a prompt must be a string, { messages } or { inputIds }')
}

/** Raw text with its special tokens, once: a text that spells them out already gets no second ones. */
export function encodeText(tokenizer: Tokenizer, text: string): number[] {
  const plain = tokenizer.encode(text, { addSpecialTokens: false })
  const special = tokenizer.encode(text, { addSpecialTokens: true })
  const added = special.length - plain.length
  const starts = added > 0 && special.slice(0, added).every((id, i) => id === plain[i])
  return starts ? plain : special
}

function checkIds(inputIds: Int32Array, { contextLength, vocabSize }: Limits, needsRoom: boolean): void {
  if (inputIds.length === 0) throw invalidArgument('the prompt is empty: it has no tokens')
  const wrong = inputIds.findIndex((id) => id < 0 || id >= vocabSize)
  if (wrong >= 0) {
    throw invalidArgument(`the prompt's token ${wrong} is ${inputIds[wrong]}, but the model knows ids below ${vocabSize}`, {
      index: wrong,
      tokenId: inputIds[wrong],
      vocabSize,
    })
  }
  const longest = needsRoom ? contextLength - 1 : contextLength
  if (inputIds.length > longest) {
    throw new QuantuneError(
      'ERR_CONTEXT_LENGTH',
      `the prompt has ${inputIds.length} tokens, but the model's context of ${contextLength} takes at most ${longest}`,
      { details: { promptLength: inputIds.length, contextLength } },
    )
  }
}

/** The model's tokenizer; null for a model that came without one, which takes and gives token ids only. */
export function tokenizerOf(model: { readonly tokenizer: Tokenizer }): Tokenizer | null {
  try {
    return model.tokenizer
  } catch (error) {
    if (error instanceof QuantuneError && error.code === 'ERR_INVALID_ARGUMENT') return null
    throw error
  }
}

/** @throws ERR_INVALID_ARGUMENT where there is none */
export function needTokenizer(tokenizer: Tokenizer | null): Tokenizer {
  if (!tokenizer) throw invalidArgument('the model has no tokenizer: give prompts as { inputIds } and no texts')
  return tokenizer
}
