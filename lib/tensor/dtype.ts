import { invalidArgument, QuantuneError } from '../errors.js'

/** In the order of `qt_dtype` in csrc/core/abi.h. */
export const dtypes = ['float32', 'bfloat16', 'float16', 'int32', 'int8', 'uint8', 'nf4', 'fp4', 'llm_int8'] as const
export type DType = (typeof dtypes)[number]
/** The types of frozen weights, of which `dequantize` makes floats. */
export type QuantizedDType = 'nf4' | 'fp4' | 'llm_int8'

export function isQuantized(dtype: DType): dtype is QuantizedDType {
  return dtype === 'nf4' || dtype === 'fp4' || dtype === 'llm_int8'
}

/** What a buffer is for; memory is reported by it. In the order of `Purpose` in csrc/core/allocator.h. */
export const purposes = ['weights', 'adapters', 'gradients', 'optimizer', 'activations', 'cache', 'other'] as const
export type Purpose = (typeof purposes)[number]

export type TensorData = Float32Array | Float64Array | Int32Array | Int8Array | Uint8Array | Uint16Array | readonly number[]

export const dtypeNumber: Readonly<Record<DType, number>> = numbered(dtypes)
export const purposeNumber: Readonly<Record<Purpose, number>> = numbered(purposes)

function numbered<T extends string>(names: readonly T[]): Record<T, number> {
  return Object.fromEntries(names.map((name, i) => [name, i])) as Record<T, number>
}

/** Bytes an element; a quantized weight's scales come on top. */
export function bytesPerElement(dtype: DType): number {
  switch (dtype) {
    case 'float32':
    case 'int32':
      return 4
    case 'bfloat16':
    case 'float16':
      return 2
    case 'int8':
    case 'uint8':
    case 'llm_int8':
      return 1
    default:
      return 0.5
  }
}

/** Host data as the queue takes it: an array and the dtype of its elements, which the queue converts to the tensor's. */
export function stageable(data: TensorData, dtype: DType): { array: NodeJS.TypedArray; from: DType } {
  if (data instanceof Float32Array) return { array: data, from: 'float32' }
  if (data instanceof Int32Array) return { array: data, from: 'int32' }
  if (data instanceof Uint8Array) return { array: data, from: 'uint8' }
  if (data instanceof Int8Array) return { array: data, from: 'int8' }
  if (data instanceof Uint16Array) {
    if (dtype === 'bfloat16' || dtype === 'float16') return { array: data, from: dtype }
    throw invalidArgument(`a Uint16Array holds the bits of a bfloat16 or float16 tensor, not of ${dtype}`)
  }
  if (dtype === 'int32') return { array: Int32Array.from(data), from: 'int32' }
  if (dtype === 'uint8') return { array: Uint8Array.from(data), from: 'uint8' }
  if (dtype === 'int8') return { array: Int8Array.from(data), from: 'int8' }
  return { array: Float32Array.from(data), from: 'float32' }
}

const hostTypes = {
  float32: Float32Array,
  bfloat16: Float32Array,
  float16: Float32Array,
  int32: Int32Array,
  int8: Int8Array,
  uint8: Uint8Array,
}

/** The array that a tensor's data arrives in, and its dtype: 16-bit floats come as float32. */
export function hostArray(
  dtype: DType,
  size: number,
): { array: Float32Array | Int32Array | Int8Array | Uint8Array; as: DType } {
  if (isQuantized(dtype)) {
    throw invalidArgument(`the data of a ${dtype} tensor cannot be read; dequantize it first`)
  }
  try {
    return { array: new hostTypes[dtype](size), as: dtype === 'bfloat16' || dtype === 'float16' ? 'float32' : dtype }
  } catch (cause) {
    throw new QuantuneError('ERR_OUT_OF_MEMORY', `no array of ${size} ${dtype} values can be made to read into`, { cause })
  }
}
