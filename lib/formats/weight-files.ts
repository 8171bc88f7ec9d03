import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { corruptFile, ioError, missingFile } from './errors.js'
import { isJsonObject, readJsonObjectIfPresent } from './json.js'
import { readFully, readSafetensorsHeader, type SafetensorsEntry } from './safetensors.js'

/** A tensor and the file it lies in. */
export interface StoredTensor extends SafetensorsEntry {
  readonly path: string
}

/** All tensors of a model folder, wherever they lie. */
export interface WeightFiles {
  readonly folder: string
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly totalBytes: number
}

const singleFile = 'model.safetensors'
const indexFile = 'model.safetensors.index.json'

/**
 * Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
 * @throws ERR_IO when there is no such file or a shard is missing, ERR_CORRUPT_FILE when a header or the index lies. Python pickles
 * (`pytorch_model.bin`, `.pt`) are never read: a pickle can run any code.
 */
export async function openWeightFiles(folder: string): Promise<WeightFiles> {
  const names = await listFolder(folder)
  if (names.includes(singleFile)) return collect(folder, [singleFile], null)
  const index = await readJsonObjectIfPresent(join(folder, indexFile))
  if (index !== null) {
    const map = checkIndex(join(folder, indexFile), index.weight_map)
    return collect(folder, [...new Set(map.values())].sort(), map)
  }
  const pickle = names.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name) && name !== 'training_args.bin')
  if (pickle === undefined) throw missingFile(join(folder, singleFile), `, nor a ${indexFile}`)
  const path = join(folder, pickle)
  throw corruptFile(
    path,
    'quantune reads safetensors files only: a Python pickle can run any code. Convert it with save_pretrained',
  )
}

async function listFolder(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    throw ioError('cannot read', folder, error)
  }
}

function checkIndex(path: string, weightMap: unknown): Map<string, string> {
  if (!isJsonObject(weightMap)) throw corruptFile(path, 'expected an object "weight_map"')
  for (const [tensor, file] of Object.entries(weightMap)) {
    // A name with a separator could lead anywhere on the disk.
    if (typeof file !== 'string' || !/^[^/\\]+\.safetensors$/.test(file)) {
      throw corruptFile(path, `is said to lie in ${JSON.stringify(file)}, which is no safetensors file of this folder`, {
        tensor,
      })
    }
  }
  return new Map(Object.entries(weightMap as Record<string, string>))
}

async function collect(folder: string, files: string[], map: Map<string, string> | null): Promise<WeightFiles> {
  const tensors = new Map<string, StoredTensor>()
  for (const file of files) {
    const path = join(folder, file)
    const { entries } = await readSafetensorsHeader(path)
    for (const entry of entries.values()) {
      if (map !== null && map.get(entry.name) !== file) {
        if (map.has(entry.name)) continue // the index decides between copies
        throw corruptFile(path, `is not in ${indexFile}`, { tensor: entry.name })
      }
      tensors.set(entry.name, { ...entry, path })
    }
  }
  for (const [tensor, file] of map ?? []) {
    if (!tensors.has(tensor)) throw corruptFile(join(folder, file), `is not there, though ${indexFile} says so`, { tensor })
  }
  let totalBytes = 0
  for (const { byteLength } of tensors.values()) totalBytes += byteLength
  return { folder, tensors, totalBytes }
}

/** Reads one tensor's bytes; for the small ones, the large ones are mapped. */
export async function readTensorBytes({ path, byteOffset, byteLength }: StoredTensor): Promise<Uint8Array<ArrayBuffer>> {
  const file = await open(path, 'r').catch((error) => {
    throw ioError('cannot read', path, error)
  })
  try {
    return await readFully(file, path, byteOffset, byteLength)
  } catch (error) {
    throw ioError('cannot read', path, error)
  } finally {
    await file.close()
  }
}
