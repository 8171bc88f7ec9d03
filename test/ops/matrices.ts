/** Weights of every storage and float64 products, for the tests of matrix products. */
import { type DType, Tensor } from '../../lib/tensor/index.js'
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

/** A factor of a product and how far from it what the operation multiplies may be. */
export interface Factor {
  value: Matrix
  error: Matrix
}

/** Whether products with activations of the dtype multiply bfloat16, to which they round factors stored otherwise. */
export function roundsFactors(h: Harness, dtype: DType): boolean {
  return dtype === 'bfloat16' && (h.device.name.startsWith('cuda') || h.device.variant === 'avx512bf16')
}

/**
 * An operand as a factor: its own error (of an intermediate result), and that of rounding to the eight bits of bfloat16, 2^-8 of
 * a value at most, unless it is stored so.
 */
export function factorOf(operand: Operand, rounds: boolean, transposed = false, own?: Float64Array): Factor {
  const value = matrix(operand, transposed)
  const inherited = own ? matrix({ ...operand, values: own }, transposed) : () => 0
  const unit = rounds && operand.tensor?.dtype !== 'bfloat16' ? 2 ** -8 : 0
  return { value, error: (i, j) => inherited(i, j) + unit * (Math.abs(value(i, j)) + inherited(i, j)) }
}

/** How far factor * a b may be from its value because of the errors of a and b: (|a| + da) (|b| + db) - |a| |b|. */
export function spread(size: readonly [number, number, number], a: Factor, b: Factor, factor = 1): Float64Array {
  const [x, y] = [a, b].map(({ value, error }) => ({
    size: (i: number, j: number) => Math.abs(value(i, j)),
    most: (i: number, j: number) => Math.abs(value(i, j)) + error(i, j),
  })) as [{ size: Matrix; most: Matrix }, { size: Matrix; most: Matrix }]
  return product(size, x.most, y.most, product(size, x.size, y.size, null, -factor), factor)
}

/** Element by element. */
export function add(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value + b[i]!)
}

/** The tolerance with so much more for each value. */
export function widened({ absolute, relative }: { absolute: number; relative: number }, errors: Float64Array) {
  // An error that moves a result over a rounding boundary moves the rounded one by no more than a unit, which `relative` holds.
  return { absolute: errors.map((error) => absolute + error * (1 + relative)), relative }
}

/** A float64 result in the place of an operand, for further products. */
export function operandOf(values: Float64Array, shape: readonly number[]): Operand {
  if (values.length !== sizeOf(shape)) throw new Error('values do not fill the shape')
  return { values, shape } as Operand
}

/** Whether the device is a GPU itself, whose tensor cores sum otherwise than float32 arithmetic does. */
const onGpu = /^cuda(:\d+)?$/.test(process.env.QUANTUNE_TEST_DEVICE ?? '')

/**
 * Float32 sums of k products of numbers of order one; a bfloat16 result rounds once more. Tensor cores (`factors` are bfloat16, on a
 * GPU) do not round sums but cut them off, after every 8 products on sm_80, every 16 on sm_90 (Fasi et al., "Numerical behavior of
 * NVIDIA tensor cores", 2021): up to 2^-23 of the sum so far, which stays below some 2 sqrt(k), k / 8 times and always towards zero.
 */
export function sumTolerance(
  k: number,
  result: 'float32' | 'bfloat16' | 'float16' = 'float32',
  factors: DType | null = 'float32',
) {
  const cut = onGpu && factors === 'bfloat16' ? (k / 8) * 2 ** -23 * 2 * Math.sqrt(k) : 0
  const absolute = 2e-6 * Math.sqrt(k) + 1e-6 + cut
  if (result === 'float32') return { absolute, relative: 4e-6 }
  return { absolute: absolute + 1e-6, relative: result === 'bfloat16' ? 4.1e-3 : 6e-4 }
}
