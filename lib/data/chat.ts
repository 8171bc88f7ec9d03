import { invalidArgument } from '../errors.js'
import { isJsonObject } from '../formats/json.js'
import { assertKnownKeys } from '../options.js'
import { ChatTemplate, type Rendering, type Span } from './chat-template.js'
import type { Tokenizer } from './tokenizer.js'
import { specialToken, type TokenizerFiles } from './tokenizer-files.js'

/** A message as chat templates know it; templates may read further fields. */
export interface ChatMessage {
  role: string
  /** Text; templates of models that see or hear also take lists of parts. */
  content?: unknown
  name?: string
  reasoning_content?: string
  tool_calls?: readonly unknown[]
  tool_call_id?: string
}

export interface ApplyChatTemplateOptions {
  /** Token ids (default) or, with false, the text. */
  tokenize?: boolean
  /** End with what opens an assistant's message. Default: false. */
  addGenerationPrompt?: boolean
  /** Leave the last message open, so that generation goes on with it. Default: false. */
  continueFinalMessage?: boolean
  /** Tools as JSON schemas. */
  tools?: readonly unknown[] | null
  /** A template's source, or the name of one of the tokenizer's templates. */
  chatTemplate?: string
  /** What `strftime_now` tells a template that asks for it. Default: the template's own date, never the clock. */
  date?: Date
  /** Further variables under the template's own names, e.g. `date_string`, `enable_thinking`. */
  [variable: string]: unknown
}

export interface RenderedChat {
  text: string
  inputIds: number[]
  /** 1 where the assistant speaks (its content and the end of its turn), else 0; computed when it is read. */
  readonly assistantMask: number[]
}

/** The chat templates of a tokenizer by name. chat_template.jinja comes before `chat_template` of tokenizer_config.json. */
export function templatesOf({ config, chatTemplateFile }: TokenizerFiles): Map<string, string> {
  const templates = new Map<string, string>()
  const entry = config.chat_template
  if (typeof entry === 'string') templates.set('default', entry)
  else if (Array.isArray(entry)) {
    for (const item of entry) {
      if (isJsonObject(item) && typeof item.name === 'string' && typeof item.template === 'string') {
        templates.set(item.name, item.template)
      }
    }
  } else if (isJsonObject(entry)) {
    for (const [name, template] of Object.entries(entry)) if (typeof template === 'string') templates.set(name, template)
  }
  if (chatTemplateFile !== null) templates.set('default', chatTemplateFile)
  return templates
}

const compiled = new Map<string, ChatTemplate>()

function compile(source: string): ChatTemplate {
  let template = compiled.get(source)
  if (!template) {
    template = new ChatTemplate(source)
    if (compiled.size >= 64) compiled.delete(compiled.keys().next().value!)
    compiled.set(source, template)
  }
  return template
}

function chooseTemplate(templates: ReadonlyMap<string, string>, asked: string | undefined, hasTools: boolean): ChatTemplate {
  if (asked !== undefined) return compile(templates.get(asked) ?? asked)
  const source = (hasTools ? templates.get('tool_use') : undefined) ?? templates.get('default')
  if (source !== undefined) return compile(source)
  if (templates.size === 0) {
    throw invalidArgument('the tokenizer has no chat template: pass `chatTemplate`, or raw text instead of messages')
  }
  throw invalidArgument(
    `no chat template is named "default": pass one of ${[...templates.keys()].join(', ')} as \`chatTemplate\``,
  )
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0)
    throw invalidArgument('messages must be a list of at least one message')
  for (const [index, message] of messages.entries()) {
    if (!isJsonObject(message) || typeof message.role !== 'string') {
      throw invalidArgument(`messages[${index}] must be an object with a role`)
    }
  }
}

/** Options in Python's spelling, which would otherwise be variables that no template reads. */
const OPTIONS = ['tokenize', 'addGenerationPrompt', 'continueFinalMessage', 'tools', 'chatTemplate', 'date']
const misspelt = ['add_generation_prompt', 'continue_final_message', 'chat_template', 'return_tensors', 'return_dict']

/** Renders the first `count` messages as the whole chat is rendered. */
type RenderStart = (count: number, addGenerationPrompt: boolean) => Rendering

export function applyChatTemplate(
  tokenizer: Tokenizer,
  templates: ReadonlyMap<string, string>,
  messages: readonly ChatMessage[],
  options: ApplyChatTemplateOptions,
): RenderedChat | string {
  const { tokenize = true, addGenerationPrompt = false, continueFinalMessage = false, chatTemplate, date, ...rest } = options
  checkMessages(messages)
  const python = misspelt.find((name) => name in rest)
  if (python !== undefined) assertKnownKeys({ [python]: true }, OPTIONS, 'ApplyChatTemplateOptions')
  if (addGenerationPrompt && continueFinalMessage) {
    throw invalidArgument('addGenerationPrompt and continueFinalMessage exclude each other')
  }
  const { tools = null, ...variables } = rest
  const template = chooseTemplate(templates, chatTemplate, Array.isArray(tools))
  const specialTokens = Object.fromEntries(
    ['bos_token', 'eos_token', 'unk_token', 'pad_token'].map((name) => [
      name,
      specialToken(tokenizer.config, name) ?? undefined,
    ]),
  )
  const render: RenderStart = (count, prompt) => {
    const chat = { messages: messages.slice(0, count), tools, add_generation_prompt: prompt }
    return template.render({ documents: null, ...specialTokens, ...variables, ...chat }, date)
  }
  let { text, spans } = render(messages.length, addGenerationPrompt)
  if (continueFinalMessage) text = cutAfterFinalMessage(text, String(messages.at(-1)!.content ?? ''))
  if (!tokenize) return text

  const inputIds = tokenizer.encode(text, { addSpecialTokens: false })
  let mask: number[] | null = null
  return {
    text,
    inputIds,
    get assistantMask() {
      mask ??= maskOf(tokenizer, inputIds, text, spans ?? spansByStructure(tokenizer, messages, text, inputIds, render))
      return mask
    },
  }
}

/** As transformers: the last place where the message's text stands, white space at its end kept only if the template kept it. */
function cutAfterFinalMessage(text: string, content: string): string {
  const at = content.trim() === '' ? -1 : text.lastIndexOf(content.trim())
  if (at < 0) throw invalidArgument('continueFinalMessage: the chat template does not show the final message as it is')
  const kept = content.trimStart()
  return text.slice(0, at + (text.startsWith(kept, at) ? kept : content.trim()).length)
}

/** 1 for each token that lies in one of the spans of `text` or reaches into it. */
export function maskOf(tokenizer: Tokenizer, inputIds: readonly number[], text: string, spans: readonly Span[]): number[] {
  const starts = tokenizer.tokenOffsets(inputIds, tokenizer.normalize(text))
  if (!starts)
    throw invalidArgument('the tokenizer changes this text before it splits it, so its tokens cannot be found in it again')
  const byteAt = (index: number) => Buffer.byteLength(tokenizer.normalize(text.slice(0, index)))
  const mask = new Array<number>(inputIds.length).fill(0)
  for (const [from, to] of spans) {
    const [begin, end] = [byteAt(from), byteAt(to)]
    for (let t = 0; t < mask.length; t++) if (starts[t]! < end && starts[t + 1]! > begin) mask[t] = 1
  }
  return mask
}

/**
 * The assistant's spans of a template without generation tags: each from the end of the rendering of the messages before it, with the
 * generation prompt, to the first end-of-turn token after its content, inclusive.
 */
function spansByStructure(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  text: string,
  inputIds: readonly number[],
  render: RenderStart,
): Span[] {
  const specials = specialSpans(tokenizer, inputIds, text)
  return messages.flatMap((message, index): Span[] => {
    if (message.role !== 'assistant') return []
    const begin = endOfPrompt(text, index, render)
    const whole = index + 1 < messages.length ? render(index + 1, false).text : text
    const limit = whole.length > begin && text.startsWith(whole) ? whole.length : text.length
    const contentEnd = endOfContent(text, begin, limit, typeof message.content === 'string' ? message.content : '')
    const inside = specials.filter(([from, to]) => from >= (contentEnd ?? begin) && to <= limit)
    // Where the template rewrote the content, only the last special token of the message can be told to end the turn.
    const endOfTurn = contentEnd === null ? inside.at(-1) : inside[0]
    return begin < limit ? [[begin, endOfTurn?.[1] ?? limit]] : []
  })
}

/** Where the special tokens of an encoded text stand in it: each is found literally, in order. */
function specialSpans(tokenizer: Tokenizer, inputIds: readonly number[], text: string): Span[] {
  let at = 0
  return inputIds.flatMap((id): Span[] => {
    if (!tokenizer.specialTokenIds.has(id)) return []
    const content = tokenizer.convertIdsToTokens(id)!
    const from = text.indexOf(content, at)
    if (from < 0) return []
    at = from + content.length
    return [[from, at]]
  })
}

function endOfPrompt(text: string, index: number, render: RenderStart): number {
  let prompt: string
  try {
    prompt = render(index, true).text
  } catch (cause) {
    throw noPrefix(index, cause)
  }
  // When a chat is cut inside its final message, what is left of that message still begins where its prompt ends.
  if (!text.startsWith(prompt)) throw noPrefix(index)
  return prompt.length
}

function noPrefix(index: number, cause?: unknown) {
  const error = invalidArgument(
    `the assistant's part of messages[${index}] cannot be found: the chat template renders the messages before it differently when ` +
      'they stand alone. Give the template {% generation %} tags around the assistant’s text',
    { messageIndex: index },
  )
  if (cause !== undefined) error.cause = cause
  return error
}

/** The end of a message's content in the rendering, white space around it kept or not; null when it is not there as it was. */
function endOfContent(text: string, begin: number, limit: number, content: string): number | null {
  if (text.startsWith(content, begin) && content !== '') return begin + content.length
  const trimmed = content.trim()
  if (trimmed === '') return null
  const at = text.indexOf(trimmed, begin)
  return at >= 0 && at + trimmed.length <= limit ? at + trimmed.length : null
}
