/** Quantized weights as bitsandbytes stores them: the codes under the weight's name, everything else beside it. */

import { elementsOf } from '../formats/dtypes.js'
import { corruptFile } from '../formats/errors.js'
import { isJsonObject } from '../formats/json.js'
import type { SafetensorsDtype } from '../formats/safetensors.js'
import { readTensorBytes, type StoredTensor, type WeightFiles } from '../formats/weight-files.js'
import { unsupportedMethod } from './config.js'

export interface StoredFourBitWeight {
  readonly type: 'nf4' | 'fp4'
  readonly shape: readonly number[]
  readonly blockSize: 64 | 128
  /** uint8 [n / 2]: two codes a byte, the first in the high nibble */
  readonly codes: StoredTensor
  /** [blocks]: float32, or uint8 with double quantization */
  readonly absmax: StoredTensor
  /** Double quantization: float32 [blocks / 256] and [256], and what was subtracted from the block maxima. */
  readonly nested: { readonly absmax: StoredTensor; readonly code: StoredTensor; readonly offset: number } | null
}

export interface StoredInt8Weight {
  /** int8 [outputs, inputs], of a transposed layer too */
  readonly codes: StoredTensor
  /** float32 [outputs] */
  readonly absmax: StoredTensor
}

const marker = '.quant_state.bitsandbytes__'

/** Whether the files hold this weight in four bits. */
export function isFourBit(files: WeightFiles, name: string): boolean {
  return files.tensors.has(`${name}${marker}nf4`) || files.tensors.has(`${name}${marker}fp4`)
}

/** Whether the files hold this weight as LLM.int8. */
export function isInt8(files: WeightFiles, name: string): boolean {
  return files.tensors.get(name)?.dtype === 'I8'
}

/** The names of a quantized weight's companions, so that they are not taken for parameters. */
export function isCompanion(name: string): boolean {
  return /\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+|SCB|weight_format)$/.test(name)
}

/** Reads and checks the description of a four-bit weight. @throws ERR_CORRUPT_FILE, ERR_UNSUPPORTED_QUANTIZATION */
export async function describeFourBit(files: WeightFiles, name: string): Promise<StoredFourBitWeight> {
  const type = files.tensors.has(`${name}${marker}nf4`) ? 'nf4' : 'fp4'
  const state = await readState(part(files, `${name}${marker}${type}`, 'U8'), type)
  const elements = state.shape.reduce((product, n) => product * n, 1)
  const blocks = Math.ceil(elements / state.blockSize)
  const codes = files.tensors.get(name)
  if (codes === undefined) throw corruptFile(files.folder, 'its codes are missing', { tensor: name })
  expectBytes(codes, Math.ceil(elements / 2))
  await checkCode(part(files, `${name}.quant_map`, 'F32', 16), type)
  const { type: _, ...shared } = state
  const common = { type, shape: shared.shape, blockSize: shared.blockSize, codes } as const
  if (state.offset === null) return { ...common, absmax: part(files, `${name}.absmax`, 'F32', blocks), nested: null }
  const nested = {
    absmax: part(files, `${name}.nested_absmax`, 'F32', Math.ceil(blocks / 256)),
    code: part(files, `${name}.nested_quant_map`, 'F32', 256),
    offset: state.offset,
  }
  return { ...common, absmax: part(files, `${name}.absmax`, 'U8', blocks), nested }
}

/**
 * Reads and checks the parts of an LLM.int8 weight: beside the codes `SCB`, the largest magnitudes, and perhaps `weight_format`, of which
 * only rows (0) are written today.
 * @param shape [outputs, inputs]
 * @throws ERR_CORRUPT_FILE, ERR_UNSUPPORTED_QUANTIZATION
 */
export async function describeInt8(
  files: WeightFiles,
  name: string,
  shape: readonly [number, number],
): Promise<StoredInt8Weight> {
  const codes = files.tensors.get(name)!
  if (codes.shape.join() !== shape.join()) {
    const problem = `was quantized as [${codes.shape.join(', ')}], config.json asks for [${shape.join(', ')}]`
    throw corruptFile(codes.path, problem, { tensor: name })
  }
  const module = name.slice(0, name.lastIndexOf('.'))
  const format = files.tensors.get(`${module}.weight_format`)
  if (format !== undefined) {
    const [number] = await readTensorBytes(format)
    if (number !== 0) throw unsupportedMethod(`LLM.int8 in the layout ${number} of ${format.name}`)
  }
  return { codes, absmax: part(files, `${module}.SCB`, 'F32', shape[0]) }
}

function part(files: WeightFiles, name: string, dtype: SafetensorsDtype, elements?: number): StoredTensor {
  const tensor = files.tensors.get(name)
  if (tensor === undefined) throw corruptFile(files.folder, 'is missing beside its quantized weight', { tensor: name })
  if (tensor.dtype !== dtype) throw corruptFile(tensor.path, `is ${tensor.dtype}, expected ${dtype}`, { tensor: name })
  if (elements !== undefined) expectBytes(tensor, dtype === 'U8' ? elements : elements * 4)
  return tensor
}

function expectBytes(tensor: StoredTensor, bytes: number): void {
  if (tensor.byteLength === bytes) return
  throw corruptFile(tensor.path, `has ${tensor.byteLength} bytes, its weight asks for ${bytes}`, { tensor: tensor.name })
}

interface State {
  type: string
  shape: number[]
  blockSize: 64 | 128
  /** null without double quantization */
  offset: number | null
}

async function readState(tensor: StoredTensor, type: string): Promise<State> {
  const lies = (problem: string) => corruptFile(tensor.path, problem, { tensor: tensor.name })
  let json: unknown
  try {
    json = JSON.parse(Buffer.from(await readTensorBytes(tensor)).toString('utf8'))
  } catch {
    throw lies('is no JSON text')
  }
  if (!isJsonObject(json) || json.quant_type !== type) throw lies(`does not describe a weight of type ${type}`)
  const { shape, blocksize, nested_blocksize: nestedBlocksize, nested_offset: offset } = json
  if (!Array.isArray(shape) || shape.length !== 2 || !shape.every((n) => Number.isSafeInteger(n) && n > 0)) {
    throw lies(`its shape ${JSON.stringify(shape)} is no matrix`)
  }
  if (!Number.isSafeInteger(blocksize) || (blocksize as number) < 1) throw lies('its blocksize is no size')
  if (blocksize !== 64 && blocksize !== 128) throw unsupportedMethod(`${type} in blocks of ${blocksize}`)
  if (nestedBlocksize === undefined) return { type, shape, blockSize: blocksize, offset: null }
  if (nestedBlocksize !== 256) throw unsupportedMethod(`${type} with double quantization in blocks of ${nestedBlocksize}`)
  if (typeof offset !== 'number' || !Number.isFinite(offset)) throw lies('its nested_offset is no number')
  return { type, shape, blockSize: blocksize, offset }
}

const codes = {
  nf4: [
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
  ],
  fp4: [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12],
}

/** Kernels have the code tables built in: a file with other values would silently mean something else. */
async function checkCode(map: StoredTensor, type: 'nf4' | 'fp4'): Promise<void> {
  const values = elementsOf('F32', await readTensorBytes(map)) as Float32Array
  const expected = type === 'nf4' ? codes.nf4 : [...codes.fp4, ...codes.fp4.map((value) => -value)]
  if (values.some((value, i) => !(Math.abs(value - expected[i]!) < 1e-5)))
    throw unsupportedMethod(`${type} with a code of its own`)
}
