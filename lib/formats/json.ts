import { readFile } from 'node:fs/promises'
import { corruptFile, ioError, missingFile } from './errors.js'

export type JsonObject = Record<string, unknown>

/**
 * Reads a JSON object.
 * @throws ERR_IO when the file cannot be read, ERR_CORRUPT_FILE when it is no JSON object.
 */
export async function readJsonObject(path: string): Promise<JsonObject> {
  const value = await readJsonObjectIfPresent(path)
  if (value === null) throw missingFile(path)
  return value
}

/** As {@link readJsonObject}, null when there is no such file. */
export async function readJsonObjectIfPresent(path: string): Promise<JsonObject | null> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw ioError('cannot read', path, error)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw corruptFile(path, `not valid JSON (${(error as Error).message})`)
  }
  if (!isJsonObject(value)) throw corruptFile(path, 'expected a JSON object')
  return value
}

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * The first key that one object of a valid JSON text holds twice, null if none does. `JSON.parse` keeps the last one silently, so
 * that two readers could see two different files.
 */
export function duplicateKey(text: string): string | null {
  const open: (Set<string> | null)[] = [] // keys seen so far of each enclosing object; null for an array
  let expectKey = false
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (character === '"') {
      const start = i
      for (i++; text[i] !== '"'; i++) if (text[i] === '\\') i++
      const keys = open[open.length - 1]
      if (!expectKey || !keys) continue
      const key = JSON.parse(text.slice(start, i + 1)) as string
      if (keys.has(key)) return key
      keys.add(key)
      expectKey = false
    } else if (character === '{' || character === '[') {
      open.push(character === '{' ? new Set() : null)
      expectKey = character === '{'
    } else if (character === '}' || character === ']') {
      open.pop()
      expectKey = false
    } else if (character === ',') {
      expectKey = open[open.length - 1] !== null
    }
  }
  return null
}
