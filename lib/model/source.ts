import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Tokenizer } from '../data/tokenizer.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { recoverFolder } from '../formats/atomic-folder.js'
import { missingFile } from '../formats/errors.js'
import { readJsonObject, readJsonObjectIfPresent } from '../formats/json.js'
import { type DownloadOptions, downloadModel } from '../hub/download.js'
import { isModelFile } from './save.js'

/** A model's small files. */
export interface ModelFolder {
  readonly folder: string
  readonly config: Record<string, unknown>
  readonly generationConfig: Record<string, unknown>
}

/** A folder as it is; anything else is a Hub id, and is downloaded into the cache (or found there). */
export async function resolveFolder(source: string, options: DownloadOptions): Promise<string> {
  if (typeof source !== 'string' || source === '') throw invalidArgument('the source of a model is a folder or a Hub id')
  const found = (await stat(source).catch(() => null)) ?? (await recovered(source))
  if (found?.isDirectory()) return source
  if (found) throw invalidArgument(`${source} is a file; expected a folder in the Hugging Face layout, or a Hub id`)
  // What looks like a path is not sent to a server.
  if (/^([./~\\]|[A-Za-z]:)/.test(source)) throw missingFile(source)
  return downloadModel(source, options)
}

/** A folder that a process which died was about to replace. */
async function recovered(path: string) {
  await recoverFolder(resolve(path), isModelFile).catch(() => {})
  return stat(path).catch(() => null)
}

export async function readModelFolder(folder: string): Promise<ModelFolder> {
  const config = await readJsonObject(join(folder, 'config.json'))
  const generationConfig = (await readJsonObjectIfPresent(join(folder, 'generation_config.json'))) ?? {}
  return { folder, config, generationConfig }
}

/**
 * The folder's tokenizer, null when it has none.
 * @throws ERR_CORRUPT_FILE when it has tokens that the embedding has no row for
 */
export async function readTokenizer(folder: string, vocabSize: number): Promise<Tokenizer | null> {
  const path = join(folder, 'tokenizer.json')
  if ((await stat(path).catch(() => null)) === null) return null
  const tokenizer = await Tokenizer.fromFolder(folder)
  checkVocabulary(path, tokenizer, vocabSize)
  return tokenizer
}

export function checkVocabulary(where: string, tokenizer: Tokenizer, vocabSize: number): void {
  if (tokenizer.vocabSize <= vocabSize) return
  const message = `${where}: the tokenizer has ids up to ${tokenizer.vocabSize - 1}, the model's embedding has ${vocabSize} rows`
  throw new QuantuneError('ERR_CORRUPT_FILE', message, {
    details: { path: where, tokens: tokenizer.vocabSize, rows: vocabSize },
  })
}
