/** Weights of every storage and float64 products, for the tests of matrix products. */
import { Tensor } from '../../lib/tensor/index.js'
import type { Harness, Operand } from './harness.js'
import { sizeOf } from './harness.js'

export const denseTypes = ['float32', 'bfloat16', 'float16'] as const
export const weightTypes = [...denseTypes, 'nf4', 'fp4'] as const
export type WeightType = (typeof weightTypes)[number]

export function isFourBit(type: WeightType): type is 'nf4' | 'fp4' {
  return type === 'nf4' || type === 'fp4'
}

export interface FourBitOptions {
  blockSize?: 64 | 128
  doubleQuant?: boolean
}

/** A normal weight of the type; the values of a 4-bit one are what `dequantize` says (quantization.test.ts pins that). */
export async function weight(
  h: Harness,
  shape: readonly number[],
  type: WeightType,
  { blockSize = 64, doubleQuant = true }: FourBitOptions = {},
): Promise<Operand> {
  if (!isFourBit(type)) return h.random.normal(shape, { dtype: type })
  const tensor = Tensor.emptyQuantized(h.device, shape, { type, blockSize, doubleQuant })
  h.ops.quantize(tensor, h.random.normal(shape).tensor)
  const dequantized = h.garbage(shape)
  h.ops.dequantize(dequantized, tensor)
  return { tensor, values: await h.read(dequantized), shape }
}

/** A matrix of numbers by a function of its indices: what lies behind an operand, transposed or not. */
export type Matrix = (row: number, column: number) => number

export function matrix({ values, shape }: Operand, transposed = false): Matrix {
  const width = shape[1]!
  return transposed ? (i, j) => values[j * width + i]! : (i, j) => values[i * width + j]!
}

/** c[m, n] = start + factor * a[m, k] b[k, n]. */
export function product(
  [m, n, k]: readonly [number, number, number],
  a: Matrix,
  b: Matrix,
  start: ArrayLike<number> | null = null,
  factor = 1,
): Float64Array {
  const c = new Float64Array(m * n)
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0
      for (let p = 0; p < k; p++) sum += a(i, p) * b(p, j)
      c[i * n + j] = (start ? start[i * n + j]! : 0) + factor * sum
    }
  }
  return c
}

/** A float64 result in the place of an operand, for further products. */
export function operandOf(values: Float64Array, shape: readonly number[]): Operand {
  if (values.length !== sizeOf(shape)) throw new Error('values do not fill the shape')
  return { values, shape } as Operand
}

/** Float32 sums of k products of numbers of order one; a bfloat16 result rounds once more. */
export function sumTolerance(k: number, dtype: 'float32' | 'bfloat16' | 'float16' = 'float32') {
  const absolute = 2e-6 * Math.sqrt(k) + 1e-6
  if (dtype === 'float32') return { absolute, relative: 4e-6 }
  return { absolute: absolute + 1e-6, relative: dtype === 'bfloat16' ? 4.1e-3 : 6e-4 }
}
