import { type FileHandle, open, readFile, truncate } from 'node:fs/promises'
import { parse } from 'csv-parse/sync'
import { stringify } from 'csv-stringify/sync'
import { QuantuneError } from '../errors.js'

/** One evaluated question as it stands in the CSV file. */
export interface EvaluationRow {
  id: string
  prompt: string
  /** All correct answers. */
  answers: string[]
  /** The model's answer; null where none could be read. */
  answer: string | null
  /** The model's whole text. */
  response: string
  exactMatch: boolean
}

const COLUMNS = ['ID', 'Prompt', 'Correct Answers', 'Model Answer', 'Full Response', 'Exact Match'] as const

/** Reads the rows of an evaluation file. A last row that was not written to its end is left out. */
export async function readEvaluation(path: string): Promise<EvaluationRow[]> {
  const text = await readFile(path, 'utf8').catch((cause) => {
    throw new QuantuneError('ERR_IO', `The evaluation file ${path} cannot be read: ${(cause as Error).message}`, { cause })
  })
  return parseRows(text.slice(0, completeLength(text)), path)
}

/**
 * An evaluation file that grows row by row. An existing file is continued: its complete rows are in `done`, a row that an
 * interruption cut off is removed.
 */
export class EvaluationWriter {
  readonly done: readonly EvaluationRow[]
  readonly #file: FileHandle

  private constructor(file: FileHandle, done: EvaluationRow[]) {
    this.#file = file
    this.done = done
  }

  static async open(path: string): Promise<EvaluationWriter> {
    try {
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return ''
        throw error
      })
      const complete = text.slice(0, completeLength(text))
      const done = parseRows(complete, path)
      if (complete.length < text.length) await truncate(path, Buffer.byteLength(complete))
      const file = await open(path, 'a')
      if (complete === '') await file.write(stringify([COLUMNS]))
      return new EvaluationWriter(file, done)
    } catch (cause) {
      if (cause instanceof QuantuneError) throw cause
      throw new QuantuneError('ERR_IO', `The evaluation file ${path} cannot be written: ${(cause as Error).message}`, { cause })
    }
  }

  /** Appends rows; they are with the operating system when the promise resolves. */
  async append(rows: readonly EvaluationRow[]): Promise<void> {
    if (rows.length > 0) await this.#file.appendFile(stringify(rows.map(fields)))
  }

  async close(): Promise<void> {
    await this.#file.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

// Both lists and answers are JSON, so that no answer and an empty or odd answer stay apart.
function fields(row: EvaluationRow): string[] {
  const { id, prompt, answers, answer, response } = row
  return [id, prompt, JSON.stringify(answers), JSON.stringify(answer), response, String(row.exactMatch)]
}

function parseRows(text: string, path: string): EvaluationRow[] {
  try {
    const [header, ...records] = parse(text) as string[][]
    if (header && header.join() !== COLUMNS.join()) throw new Error(`its first line is not ${COLUMNS.join()}`)
    return records.map(([id, prompt, answers, answer, response, match]) => ({
      id: id!,
      prompt: prompt!,
      answers: JSON.parse(answers!),
      answer: JSON.parse(answer!),
      response: response!,
      exactMatch: match === 'true',
    }))
  } catch (cause) {
    throw new QuantuneError('ERR_CORRUPT_FILE', `${path} is not an evaluation file: ${(cause as Error).message}`, { cause })
  }
}

/** The length of `text` up to the last line end outside quotes: what was written completely. */
function completeLength(text: string): number {
  let quoted = false
  let complete = 0
  for (let i = 0; i < text.length; i++) {
    const c = text[i]
    if (c === '"') quoted = !quoted
    else if (c === '\n' && !quoted) complete = i + 1
  }
  return complete
}
