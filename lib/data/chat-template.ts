import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'
import { invalidArgument, QuantuneError } from '../errors.js'

/** Half-open ranges of a rendered text, in UTF-16 units. */
export type Span = readonly [start: number, end: number]

export interface Rendering {
  text: string
  /** What the template's `{% generation %}` tags enclose; null when it has none. */
  spans: Span[] | null
}

// Noncharacters: Unicode keeps them out of any text that is exchanged.
const BEGIN = '\uFDD0'
const END = '\uFDD1'

/**
 * Turns `{% generation %}` tags, which the engine would drop, into marks of the output. The mark stands inside an `if`, so that the
 * tag's own white-space control (`-`, trim_blocks, lstrip_blocks) works as it would have.
 */
function markGenerationTags(source: string): string {
  return source.replace(
    /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g,
    (_, before: string, end: string | undefined, after: string) => {
      return `{%${before} if true %}${end ? END : BEGIN}{% endif ${after}%}`
    },
  )
}

const MONTHS = 'January February March April May June July August September October November December'.split(' ')
const DAYS = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ')

/** Python's strftime in the C locale, for what chat templates ask. */
export function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const fields: Record<string, () => string> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    d: () => two(date.getDate()),
    B: () => MONTHS[date.getMonth()]!,
    b: () => MONTHS[date.getMonth()]!.slice(0, 3),
    A: () => DAYS[date.getDay()]!,
    a: () => DAYS[date.getDay()]!.slice(0, 3),
    H: () => two(date.getHours()),
    I: () => two(date.getHours() % 12 || 12),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    '%': () => '%',
  }
  return format.replace(/%(.)/g, (directive, letter: string) => fields[letter]?.() ?? directive)
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  if (step === 0) throw new Error('range() step must not be zero')
  const result: number[] = []
  for (let value = from; step > 0 ? value < to : value > to; value += step) result.push(value)
  return result
}

const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range,
  raise_exception: (message: string) => {
    throw new Error(message)
  },
}

/** A compiled chat template (Jinja, with transformers' settings: trim_blocks and lstrip_blocks). */
export class ChatTemplate {
  readonly source: string
  readonly hasGenerationTags: boolean
  readonly #program: ReturnType<typeof parse>

  constructor(source: string) {
    this.source = source
    const marked = markGenerationTags(source)
    this.hasGenerationTags = marked !== source
    try {
      this.#program = parse(tokenize(marked, { lstrip_blocks: true, trim_blocks: true }))
    } catch (cause) {
      throw new QuantuneError('ERR_INVALID_ARGUMENT', `the chat template cannot be parsed: ${(cause as Error).message}`, {
        cause,
      })
    }
  }

  /**
   * Renders with `variables` as the template's names. `strftime_now` is there only when `date` is given: the clock is never read, so a
   * template that has a date of its own takes that.
   */
  render(variables: Readonly<Record<string, unknown>>, date?: Date): Rendering {
    const environment = new Environment()
    const now = date && { strftime_now: (format: string) => strftime(date, format) }
    for (const [name, value] of Object.entries({ ...GLOBALS, ...now, ...variables })) {
      if (value !== undefined) environment.set(name, value)
    }
    let text: string
    try {
      text = String((new Interpreter(environment).run(this.#program) as { value: unknown }).value)
    } catch (cause) {
      const hint = !date && this.source.includes('strftime_now') ? ' (it asks for the date: pass `date`)' : ''
      const message = `the chat template refuses these messages: ${(cause as Error).message}${hint}`
      throw new QuantuneError('ERR_INVALID_ARGUMENT', message, { cause })
    }
    return this.hasGenerationTags ? takeMarks(text) : { text, spans: null }
  }
}

/** Takes the marks out of a rendered text and returns what they enclosed. */
function takeMarks(marked: string): Rendering {
  const spans: Span[] = []
  let text = ''
  let begin: number | null = null
  for (const piece of marked.split(/([\uFDD0\uFDD1])/)) {
    if (piece === BEGIN && begin === null) begin = text.length
    else if (piece === END && begin !== null) {
      spans.push([begin, text.length])
      begin = null
    } else if (piece === BEGIN || piece === END) {
      throw invalidArgument('generation tags of the chat template are nested, or a message holds U+FDD0 or U+FDD1')
    } else text += piece
  }
  if (begin !== null) spans.push([begin, text.length])
  return { text, spans }
}
