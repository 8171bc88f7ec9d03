import { invalidArgument } from '../errors.js'
import type { SafetensorsDtype } from './safetensors.js'

/** What holds a tensor's elements in JavaScript; 16-bit floats as Float32Array (values) or Uint16Array (bits). */
export type ElementArray =
  | Float32Array
  | Float64Array
  | Int32Array
  | BigInt64Array
  | Int8Array
  | Uint8Array
  | Uint16Array
  | Uint32Array

const float = new Float32Array(1)
const bits = { float, word: new Uint32Array(float.buffer) }

/** Rounds to the nearest bfloat16, ties to even, as PyTorch does; NaN stays NaN. */
export function toBfloat16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  const out = new Uint16Array(values.length)
  for (let i = 0; i < out.length; i++) {
    const word = words[i]!
    const notANumber = (word & 0x7fffffff) > 0x7f800000
    out[i] = notANumber ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
  return out
}

export function fromBfloat16(values: Uint16Array): Float32Array {
  const words = new Uint32Array(values.length)
  for (let i = 0; i < words.length; i++) words[i] = values[i]! << 16
  return new Float32Array(words.buffer)
}

/** Rounds to the nearest float16, ties to even; what is too large becomes infinity. */
export function toFloat16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length)
  for (let i = 0; i < out.length; i++) out[i] = float16Bits(values[i]!)
  return out
}

function float16Bits(value: number): number {
  bits.float[0] = value
  const word = bits.word[0]!
  const sign = (word >>> 16) & 0x8000
  const magnitude = word & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00
  if (magnitude >= 0x477ff000) return sign | 0x7c00 // rounds to 65520 or more
  if (magnitude < 0x38800000) {
    // Subnormal: the float32 unit of last place at 2^-1 * 2^10 is one float16 subnormal step, so adding it rounds for us.
    bits.float[0] = Math.abs(value) + 0.5
    return sign | (bits.word[0]! - 0x3f000000)
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1)
  return sign | ((rounded - 0x38000000) >>> 13)
}

export function fromFloat16(values: Uint16Array): Float32Array {
  const out = new Float32Array(values.length)
  for (let i = 0; i < out.length; i++) {
    const half = values[i]!
    const exponent = (half >>> 10) & 31
    const fraction = half & 1023
    const sign = half & 0x8000 ? -1 : 1
    if (exponent === 31) out[i] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
    else out[i] = sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction)
  }
  return out
}

const arrayOf: Partial<Record<SafetensorsDtype, (bytes: Uint8Array<ArrayBuffer>) => ElementArray>> = {
  F32: (bytes) => new Float32Array(bytes.buffer),
  F64: (bytes) => new Float64Array(bytes.buffer),
  F16: (bytes) => fromFloat16(new Uint16Array(bytes.buffer)),
  BF16: (bytes) => fromBfloat16(new Uint16Array(bytes.buffer)),
  I64: (bytes) => new BigInt64Array(bytes.buffer),
  I32: (bytes) => new Int32Array(bytes.buffer),
  U32: (bytes) => new Uint32Array(bytes.buffer),
  U16: (bytes) => new Uint16Array(bytes.buffer),
  I8: (bytes) => new Int8Array(bytes.buffer),
  U8: (bytes) => bytes,
}

/** Elements of a little-endian byte array of its own; 16-bit floats arrive as Float32Array, null for types without an array. */
export function elementsOf(dtype: SafetensorsDtype, bytes: Uint8Array<ArrayBuffer>): ElementArray | null {
  return arrayOf[dtype]?.(bytes) ?? null
}

/** Of no type: what cannot be written. */
class Never {}

const nativeArray: Partial<Record<SafetensorsDtype, new (length: number) => ElementArray>> = {
  F32: Float32Array,
  F64: Float64Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  I64: BigInt64Array,
  I32: Int32Array,
  U32: Uint32Array,
  U16: Uint16Array,
  I8: Int8Array,
  U8: Uint8Array,
}

/** The bytes of `data` as `dtype`; the only conversion is from Float32Array to the 16-bit floats. */
export function bytesOf(name: string, dtype: SafetensorsDtype, data: ElementArray): Uint8Array {
  let elements = data
  if (data instanceof Float32Array && dtype === 'BF16') elements = toBfloat16(data)
  else if (data instanceof Float32Array && dtype === 'F16') elements = toFloat16(data)
  else if (!(data instanceof (nativeArray[dtype] ?? Never))) {
    throw invalidArgument(`tensor "${name}": cannot write a ${data.constructor.name} as ${dtype}`)
  }
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength)
}
