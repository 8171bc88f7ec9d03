/**
 * What the tests of operations share. A test file reads:
 *
 *   const h = await openHarness()
 *   for (const dtype of ['float32', 'bfloat16'] as const)
 *     t.test(`rms_norm ${dtype}`, async (t) => {
 *       const x = h.random.normal([3, 8], { dtype })                    // seeded data, on the device and as float64
 *       const y = h.empty([3, 8], dtype)
 *       h.ops.rms_norm(y, null, x.tensor, w.tensor, 1e-5)
 *       await h.close(t, y, reference(x.values), tolerance[dtype])
 *       await h.rejects(t, y, () => h.ops.rms_norm(y, null, wrong, w.tensor, 1e-5), /rms_norm/)
 *     })
 *
 * A backward is checked against `numericGradient` of the float64 reference. The device is QUANTUNE_TEST_DEVICE (default cpu);
 * variants.test.ts runs every file again on the CPU's other variants.
 */
import type { Test } from 'tap'
import { Device, type DType, type Ops, Tensor } from '../../lib/tensor/index.js'

type Values = ArrayLike<number>

/** An operand twice: on the device, and as the float64 numbers that it holds there (rounded to its dtype). */
export interface Operand {
  tensor: Tensor
  values: Float64Array
  shape: readonly number[]
}

/** A value passes when |actual - expected| <= absolute + relative * |expected|; `absolute` for all values or for each. */
export interface Tolerance {
  absolute: number | Values
  relative: number
}

/** For results of the dtype whose sums are short; scale `absolute` with the size of what is summed. */
export const tolerance: Record<'float32' | 'bfloat16' | 'float16', { absolute: number; relative: number }> = {
  float32: { absolute: 2e-6, relative: 2e-6 },
  bfloat16: { absolute: 1e-2, relative: 8e-3 },
  float16: { absolute: 1e-3, relative: 1e-3 },
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, dimension) => product * dimension, 1)
}

/** The nearest value of `dtype`, ties to even. */
export function round(value: number, dtype: DType): number {
  if (dtype === 'float32') return Math.fround(value)
  if (dtype === 'bfloat16') {
    const bits = new DataView(new ArrayBuffer(4))
    bits.setFloat32(0, value)
    const word = bits.getUint32(0)
    bits.setUint32(0, ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) << 16)
    return Number.isFinite(value) ? bits.getFloat32(0) : value
  }
  if (dtype === 'float16') {
    const exponent = Math.max(Math.floor(Math.log2(Math.abs(value) || 1)), -14)
    const unit = 2 ** (exponent - 10)
    const scaled = Math.fround(value) / unit
    const floor = Math.floor(scaled)
    const rest = scaled - floor
    const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0)
    return (up ? floor + 1 : floor) * unit
  }
  return value
}

/** Deterministic numbers: SplitMix32. */
export class Random {
  #state: number
  readonly #device: Device

  constructor(device: Device, seed = 1) {
    this.#device = device
    this.#state = seed | 0
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) | 0
    let z = this.#state
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad)
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32
  }

  normal(shape: readonly number[], { dtype = 'float32' as DType, scale = 1, mean = 0 } = {}): Operand {
    return this.#fill(shape, dtype, () => {
      const radius = Math.sqrt(-2 * Math.log(1 - this.next()))
      return mean + scale * radius * Math.cos(2 * Math.PI * this.next())
    })
  }

  uniform(shape: readonly number[], { dtype = 'float32' as DType, low = 0, high = 1 } = {}): Operand {
    return this.#fill(shape, dtype, () => low + (high - low) * this.next())
  }

  /** int32 in [low, high). */
  integers(shape: readonly number[], low: number, high: number): Operand {
    return this.#fill(shape, 'int32', () => low + Math.floor((high - low) * this.next()))
  }

  #fill(shape: readonly number[], dtype: DType, draw: () => number): Operand {
    const values = Float64Array.from({ length: sizeOf(shape) }, () => round(draw(), dtype))
    return { tensor: Tensor.from(this.#device, values, shape, dtype), values, shape }
  }
}

/** Central differences of a scalar function of float64 values, element by element. */
export function numericGradient(f: (x: Float64Array) => number, at: Values, step = 1e-5): Float64Array {
  const x = Float64Array.from(at)
  return x.map((value, i) => {
    x[i] = value + step
    const above = f(x)
    x[i] = value - step
    const below = f(x)
    x[i] = value
    return (above - below) / (2 * step)
  })
}

export function dot(a: Values, b: Values): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!
  return sum
}

export class Harness {
  readonly device: Device
  readonly ops: Ops
  readonly random: Random

  constructor(device: Device) {
    this.device = device
    this.ops = device.ops
    this.random = new Random(device)
  }

  /** An operand of given values, rounded to `dtype`. */
  operand(values: Values, shape: readonly number[] = [values.length], dtype: DType = 'float32'): Operand {
    const rounded = Float64Array.from(values, (value) => round(value, dtype))
    return { tensor: Tensor.from(this.device, rounded, shape, dtype), values: rounded, shape }
  }

  empty(shape: readonly number[], dtype: DType = 'float32'): Tensor {
    return Tensor.empty(this.device, shape, dtype)
  }

  /** NaN everywhere (floats) or a large negative number: what an output holds before the operation overwrites it. */
  garbage(shape: readonly number[], dtype: DType = 'float32'): Tensor {
    const value = dtype === 'int32' ? -123456789 : dtype === 'int8' || dtype === 'uint8' ? 77 : Number.NaN
    return Tensor.from(this.device, new Array(sizeOf(shape)).fill(value), shape, dtype)
  }

  zeros(shape: readonly number[], dtype: DType = 'float32'): Tensor {
    return Tensor.from(this.device, new Array(sizeOf(shape)).fill(0), shape, dtype)
  }

  async read(tensor: Tensor): Promise<Float64Array> {
    return Float64Array.from(await tensor.data())
  }

  /** Every value within the tolerance; the largest deviation and where it is are in the test's diagnostics. */
  async close(t: Test, actual: Tensor, expected: Values, { absolute, relative }: Tolerance, message = 'values'): Promise<void> {
    const values = await this.read(actual)
    const allowed = (i: number) => (typeof absolute === 'number' ? absolute : absolute[i]!)
    if (values.length !== expected.length) {
      t.equal(values.length, expected.length, `${message}: as many values as expected`)
      return
    }
    let worst = -1
    let worstExcess = 0
    for (let i = 0; i < values.length; i++) {
      const a = values[i]!
      const e = expected[i]!
      if (Object.is(a, e) || a === e || (Number.isNaN(a) && Number.isNaN(e))) continue
      const excess = Math.abs(a - e) / (allowed(i) + relative * Math.abs(e))
      if (!(excess <= 1) && !(excess <= worstExcess)) {
        worst = i
        worstExcess = Number.isNaN(excess) ? Number.POSITIVE_INFINITY : excess
      }
    }
    if (worst < 0) t.pass(`${message} within ${allowed(0)} + ${relative} relative`)
    else t.fail(`${message}: ${values[worst]} instead of ${expected[worst]} at ${worst}`, { excess: worstExcess, index: worst })
  }

  async equal(t: Test, actual: Tensor, expected: Values, message = 'values'): Promise<void> {
    t.strictSame([...(await this.read(actual))], Array.from(expected), message)
  }

  /** Queues with `queue` and expects the output to be refused with ERR_INVALID_ARGUMENT and a message like `pattern`. */
  async rejects(
    t: Test,
    output: Tensor,
    queue: () => void,
    pattern: RegExp,
    message = `refused: ${pattern.source}`,
  ): Promise<void> {
    queue()
    try {
      await output.data()
    } catch (error) {
      const { code, message: text } = error as { code?: string; message: string }
      t.equal(code, 'ERR_INVALID_ARGUMENT', message)
      t.match(text, pattern, message)
      return
    }
    t.fail(`${message}: was accepted`)
  }
}

export async function openHarness(): Promise<Harness> {
  return new Harness(await Device.open(process.env.QUANTUNE_TEST_DEVICE ?? 'cpu'))
}
