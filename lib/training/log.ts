import { appendFile, mkdir, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { writeTextAtomically } from '../formats/atomic-file.js'
import { ioError } from '../formats/errors.js'
import type { JsonObject } from '../formats/json.js'

const LOG_FILE = 'log.jsonl'
/** Where the log of an earlier training in the same folder goes. */
const PREVIOUS_LOG_FILE = 'log.previous.jsonl'

/** `log.jsonl`: a JSON object a line, written as it happens. */
export class TrainingLog {
  readonly path: string

  private constructor(readonly outputDir: string) {
    this.path = join(outputDir, LOG_FILE)
  }

  /** @param resumedStep - the lines up to this step are kept; null: a new log, and an earlier one is put aside */
  static async open(outputDir: string, resumedStep: number | null): Promise<TrainingLog> {
    const log = new TrainingLog(outputDir)
    try {
      await mkdir(outputDir, { recursive: true })
      if (resumedStep === null) await log.#putAside()
      else await log.#cut(resumedStep)
      await appendFile(log.path, '')
    } catch (error) {
      throw ioError('cannot write', log.path, error)
    }
    return log
  }

  async append(line: JsonObject): Promise<void> {
    await appendFile(this.path, `${JSON.stringify(line)}\n`).catch((error) => {
      throw ioError('cannot write', this.path, error)
    })
  }

  async #putAside(): Promise<void> {
    await rename(this.path, join(this.outputDir, PREVIOUS_LOG_FILE)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
    })
  }

  /** Drops what an interrupted training logged after its last checkpoint, and a line that was cut off. */
  async #cut(resumedStep: number): Promise<void> {
    const text = await readFile(this.path, 'utf8').catch(() => '')
    const kept = text.split('\n').filter((line) => stepOf(line) <= resumedStep)
    await writeTextAtomically(this.path, kept.map((line) => `${line}\n`).join(''))
  }
}

function stepOf(line: string): number {
  try {
    return Number((JSON.parse(line) as { step?: number }).step ?? Number.POSITIVE_INFINITY)
  } catch {
    return Number.POSITIVE_INFINITY
  }
}
