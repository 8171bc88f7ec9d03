import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeJsonAtomically, writeTextAtomically } from '../formats/atomic-file.js'
import { corruptFile, ioError } from '../formats/errors.js'
import { isJsonObject, type JsonObject, readJsonObject, readJsonObjectIfPresent } from '../formats/json.js'

/** An entry of `added_tokens` in tokenizer.json. */
export interface AddedToken {
  id: number
  content: string
  single_word: boolean
  lstrip: boolean
  rstrip: boolean
  normalized: boolean
  special: boolean
}

/** A tokenizer's files, parsed. */
export interface TokenizerFiles {
  /** tokenizer.json */
  tokenizer: JsonObject
  /** tokenizer_config.json; empty when there is none. */
  config: JsonObject
  /** The text of chat_template.jinja, null when there is no such file. */
  chatTemplateFile: string | null
}

async function readTextIfPresent(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw ioError('cannot read', path, error)
  }
}

/**
 * Reads a tokenizer from a folder in the Hugging Face layout.
 * @throws ERR_IO when tokenizer.json is missing, ERR_CORRUPT_FILE when a file is not what it should be
 */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const path = join(folder, 'tokenizer.json')
  const tokenizer = await readJsonObject(path)
  if (!isJsonObject(tokenizer.model)) throw corruptFile(path, 'expected an object "model"')
  if (tokenizer.added_tokens !== undefined && !Array.isArray(tokenizer.added_tokens)) {
    throw corruptFile(path, 'expected a list "added_tokens"')
  }
  const config = (await readJsonObjectIfPresent(join(folder, 'tokenizer_config.json'))) ?? {}
  const special = await readJsonObjectIfPresent(join(folder, 'special_tokens_map.json'))
  return {
    tokenizer,
    config: { ...special, ...config },
    chatTemplateFile: await readTextIfPresent(join(folder, 'chat_template.jinja')),
  }
}

export async function writeTokenizerFiles(folder: string, files: TokenizerFiles): Promise<void> {
  await writeJsonAtomically(join(folder, 'tokenizer.json'), files.tokenizer)
  await writeJsonAtomically(join(folder, 'tokenizer_config.json'), files.config)
  if (files.chatTemplateFile !== null) await writeTextAtomically(join(folder, 'chat_template.jinja'), files.chatTemplateFile)
}

/** `added_tokens` of tokenizer.json and those that only tokenizer_config.json lists (`added_tokens_decoder`), by id. */
export function addedTokensOf({ tokenizer, config }: TokenizerFiles): AddedToken[] {
  const tokens = new Map<number, AddedToken>()
  const add = (id: number, entry: JsonObject) => {
    if (typeof entry.content !== 'string' || !Number.isInteger(id) || tokens.has(id)) return
    const special = entry.special === true
    tokens.set(id, {
      id,
      content: entry.content,
      single_word: entry.single_word === true,
      lstrip: entry.lstrip === true,
      rstrip: entry.rstrip === true,
      normalized: typeof entry.normalized === 'boolean' ? entry.normalized : !special,
      special,
    })
  }
  for (const entry of (tokenizer.added_tokens ?? []) as JsonObject[]) add(entry.id as number, entry)
  const decoder = isJsonObject(config.added_tokens_decoder) ? config.added_tokens_decoder : {}
  for (const [id, entry] of Object.entries(decoder)) if (isJsonObject(entry)) add(Number(id), entry)
  return [...tokens.values()].sort((a, b) => a.id - b.id)
}

/** A special token of tokenizer_config.json: a string or an object with its content. */
export function specialToken(config: JsonObject, name: string): string | null {
  const value = config[name]
  if (typeof value === 'string') return value
  return isJsonObject(value) && typeof value.content === 'string' ? value.content : null
}
