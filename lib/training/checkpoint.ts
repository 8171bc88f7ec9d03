import { readdir, rename, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Parameter } from '../autograd/parameter.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { writeJsonAtomically } from '../formats/atomic-file.js'
import { hiddenName, writeFolder } from '../formats/atomic-folder.js'
import { elementsOf } from '../formats/dtypes.js'
import { ioError } from '../formats/errors.js'
import { readJsonObject } from '../formats/json.js'
import { readSafetensorsHeader } from '../formats/safetensors.js'
import { type SafetensorsSource, writeSafetensors } from '../formats/safetensors-writer.js'
import { openWeightFiles, readTensorBytes, type StoredTensor } from '../formats/weight-files.js'
import type { Tensor } from '../tensor/tensor.js'
import { saveTrainee, type Trainee } from './model.js'
import type { AdamW, Readable } from './optimizer.js'
import { type RunSetup, type RunState, type SavedState, stateFromJson, stateToJson } from './state.js'

export const STATE_FILE = 'trainer_state.json'
const OPTIMIZER_FILE = 'optimizer.safetensors'
const ADAPTER_FILE = 'adapter_model.safetensors'
const MODEL_FILE = /^model\.safetensors(\.index\.json)?$/
/** Trainable parameters that neither an adapter's nor a model's files hold exactly. */
const OTHERS_FILE = 'trainable.safetensors'
const finished = /^checkpoint-(\d+)$/
/** Folders that are being written, replaced or deleted; the first group is the step. */
const unfinished = /^\.checkpoint-(\d+)\.[^.]+\.(new|old)$/
/** What a model that was being saved into a checkpoint left. */
const withinUnfinished = /^\.\.checkpoint-.*\.(new|old)$/

export interface CheckpointContents {
  state: RunState
  setup: RunSetup
  optimizer: AdamW
  trainee: Trainee
}

/**
 * Writes `checkpoint-STEP`: everything into a hidden folder beside it, synced to the disk, then renamed. At no moment is an older
 * checkpoint touched, nor is a half-written one under its final name.
 *
 * @returns its folder
 * @throws QuantuneError `ERR_IO` (full disk, unwritable folder)
 */
export async function writeCheckpoint(outputDir: string, contents: CheckpointContents): Promise<string> {
  const { state, setup, optimizer, trainee } = contents
  const path = join(outputDir, `checkpoint-${state.globalStep}`)
  const { steps, tensors } = optimizer.stateDict()
  await writeFolder(path, async (folder) => {
    await saveTrainee(trainee, folder)
    await saveOthers(folder, trainee.parameters)
    await writeSafetensors(join(folder, OPTIMIZER_FILE), [...tensors].map(floats), { format: 'pt' })
    await writeJsonAtomically(join(folder, STATE_FILE), stateToJson(state, setup, steps))
  })
  return path
}

/** Keeps the exact values of trainable parameters that the files for users do not hold, or hold rounded. */
async function saveOthers(folder: string, parameters: readonly Parameter[]): Promise<void> {
  const held = await storedTensors(folder)
  const others = parameters.filter(({ name }) => held.get(name)?.dtype !== 'F32')
  if (others.length === 0) return
  const sources = others.map(({ name, value }) => floats([name, value]))
  await writeSafetensors(join(folder, OTHERS_FILE), sources, { format: 'pt' })
}

const floats = ([name, tensor]: [string, Tensor]): SafetensorsSource => {
  return { name, dtype: 'F32', shape: tensor.shape, data: async () => (await tensor.data()) as Float32Array }
}

/** Tidies up after a process that died while it wrote: what was being written goes, what was being replaced returns. */
export async function recoverOutput(outputDir: string): Promise<void> {
  const names = await listFolder(outputDir)
  for (const name of names) {
    if (withinUnfinished.test(name)) await rm(join(outputDir, name), { recursive: true, force: true })
    const match = unfinished.exec(name)
    if (!match) continue
    const target = `checkpoint-${match[1]}`
    if (match[2] === 'old' && !names.includes(target)) await rename(join(outputDir, name), join(outputDir, target))
    else await rm(join(outputDir, name), { recursive: true, force: true })
  }
}

interface Found {
  path: string
  startedAt: string
  step: number
}

/** The folder's checkpoints that can be read, oldest first: by training, then by step. */
export async function listCheckpoints(outputDir: string): Promise<Found[]> {
  const found: Found[] = []
  for (const name of await listFolder(outputDir)) {
    if (!finished.test(name)) continue
    const path = join(outputDir, name)
    const saved = await readState(path).catch(() => null)
    if (saved) found.push({ path, startedAt: saved.state.startedAt, step: saved.state.globalStep })
  }
  return found.sort((a, b) => (a.startedAt < b.startedAt ? -1 : a.startedAt > b.startedAt ? 1 : a.step - b.step))
}

/** Deletes the oldest checkpoints of the training that began at `startedAt` beyond `limit`, never its newest or its best. */
export async function rotateCheckpoints(outputDir: string, limit: number, { startedAt, bestModelCheckpoint }: RunState) {
  const own = (await listCheckpoints(outputDir)).filter((found) => found.startedAt === startedAt)
  const best = bestModelCheckpoint && basename(bestModelCheckpoint)
  const deletable = own.slice(0, -1).filter(({ path }) => basename(path) !== best)
  for (const { path } of deletable.slice(0, Math.max(0, own.length - limit))) {
    // Renamed first, so that a half-deleted folder never looks like a checkpoint.
    const doomed = hiddenName(path, 'new')
    await rename(path, doomed)
    await rm(doomed, { recursive: true, force: true })
  }
}

/**
 * The checkpoint to resume from: a folder, or the newest one of `outputDir` (true: there must be one; 'auto': null if there is none).
 * @throws QuantuneError `ERR_INVALID_ARGUMENT` where there is none
 */
export async function findCheckpoint(outputDir: string, resume: boolean | string | undefined): Promise<string | null> {
  if (resume === undefined || resume === false) return null
  if (resume !== true && resume !== 'auto') return resume
  const newest = (await listCheckpoints(outputDir)).at(-1)?.path ?? null
  if (newest === null && resume === true) {
    throw invalidArgument(
      `resumeFromCheckpoint: there is no checkpoint in ${outputDir}; take 'auto' to start anew in that case`,
    )
  }
  return newest
}

/** @throws QuantuneError `ERR_IO`, `ERR_CORRUPT_FILE` */
export async function readState(checkpoint: string): Promise<SavedState> {
  const path = join(checkpoint, STATE_FILE)
  return stateFromJson(await readJsonObject(path), path)
}

/** Loads the moments; nothing is changed where they are of other parameters. */
export async function loadOptimizer(checkpoint: string, optimizer: AdamW, steps: Record<string, number>): Promise<void> {
  const path = join(checkpoint, OPTIMIZER_FILE)
  const { entries } = await readSafetensorsHeader(path)
  const tensors = new Map<string, Readable>()
  for (const [name, entry] of entries) tensors.set(name, { shape: entry.shape, data: () => readFloats({ ...entry, path }) })
  await optimizer.loadStateDict({ steps, tensors })
}

/**
 * Loads trainable parameters by their names.
 * @throws QuantuneError `ERR_ADAPTER_MISMATCH` where one is missing or has another shape; nothing is changed then
 */
export async function loadParameters(checkpoint: string, parameters: readonly Parameter[]): Promise<void> {
  const tensors = await storedTensors(checkpoint)
  const stored = parameters.map((parameter) => {
    const tensor = tensors.get(parameter.name)
    if (tensor?.shape.join() === parameter.shape.join()) return tensor
    const found = tensor ? `shape [${tensor.shape.join(', ')}]` : 'nothing'
    const expected = `"${parameter.name}" with shape [${parameter.shape.join(', ')}]`
    throw new QuantuneError('ERR_ADAPTER_MISMATCH', `${checkpoint}: expected ${expected}, found ${found}`, {
      details: { checkpoint, parameter: parameter.name },
    })
  })
  for (const [i, parameter] of parameters.entries()) parameter.value.write(await readFloats(stored[i]!))
}

/** All weights that lie in a checkpoint; what is there exactly comes before what is there for users. */
async function storedTensors(checkpoint: string): Promise<Map<string, StoredTensor>> {
  const names = await listFolder(checkpoint)
  const tensors = new Map<string, StoredTensor>()
  if (names.some((name) => MODEL_FILE.test(name))) {
    for (const [name, tensor] of (await openWeightFiles(checkpoint)).tensors) tensors.set(name, tensor)
  }
  for (const file of [ADAPTER_FILE, OTHERS_FILE]) {
    if (!names.includes(file)) continue
    const path = join(checkpoint, file)
    for (const [name, entry] of (await readSafetensorsHeader(path)).entries) tensors.set(name, { ...entry, path })
  }
  return tensors
}

async function readFloats(tensor: StoredTensor): Promise<Float32Array> {
  const elements = elementsOf(tensor.dtype, await readTensorBytes(tensor))
  if (elements instanceof Float32Array) return elements
  throw new QuantuneError('ERR_CORRUPT_FILE', `${tensor.path}: tensor "${tensor.name}" is ${tensor.dtype}, expected floats`)
}

async function listFolder(path: string): Promise<string[]> {
  return readdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw ioError('cannot read', path, error)
  })
}
