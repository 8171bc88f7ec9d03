/** LLM.int8: weights against their definition, products against float64 sums of the codes. */
import t from 'tap'
import { Tensor } from '../../lib/tensor/index.js'
import { type Operand, openHarness } from './harness.js'
import { add, factorOf, matrix, operandOf, product, roundsFactors, spread, sumTolerance, widened } from './matrices.js'

const h = await openHarness()
const { ops, device } = h

interface Weight extends Operand {
  /** [n, k] and [n] */
  codes: Float64Array
  absmax: Float64Array
}

const nearestEven = (value: number) => {
  const floor = Math.floor(value)
  const rest = value - floor
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor
}

/** The codes of a row as float32 arithmetic yields them, but for the elements that `skip` names. */
function codesOf(row: Float64Array, skip: (value: number) => boolean = () => false) {
  const largest = row.reduce((most, value) => (skip(value) ? most : Math.max(most, Math.abs(value))), 0)
  const inverse = largest > 0 ? Math.fround(127 / largest) : 0
  return { largest, codes: row.map((value) => nearestEven(Math.fround(value * inverse))) }
}

/** [n, k], or [k, n] when transposed; row `zeros` of the outputs is 0. */
async function weight(n: number, k: number, transposed: boolean, threshold: number, zeros = -1): Promise<Weight> {
  const shape = transposed ? [k, n] : [n, k]
  const drawn = h.random
    .normal(shape)
    .values.map((value, i) => ((transposed ? i % n : Math.floor(i / k)) === zeros ? 0 : value))
  const tensor = Tensor.emptyQuantized(device, shape, { type: 'llm_int8', threshold, transposed })
  ops.quantize(tensor, h.operand(drawn, shape).tensor)
  const [codes, absmax, values] = [h.garbage([n, k], 'int8'), h.garbage([n]), h.garbage(shape)]
  ops.quantized_export(codes, absmax, null, null, null, tensor)
  ops.dequantize(values, tensor)
  const read = await Promise.all([values, codes, absmax].map((part) => h.read(part)))
  return { tensor, shape, values: read[0]!, codes: read[1]!, absmax: read[2]! }
}

t.test('weights: codes, scales, values, and back', async (t) => {
  for (const [n, k] of [
    [1, 1],
    [3, 5],
    [33, 65],
    [17, 128],
    [40, 300],
  ] as const) {
    for (const transposed of [false, true]) {
      for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
        const shape = transposed ? [k, n] : [n, k]
        const w = h.random.normal(shape, { dtype })
        const zeros = n > 2 ? 1 : -1
        const of = (i: number, j: number) => (transposed ? j * n + i : i * k + j)
        if (zeros >= 0) for (let j = 0; j < k; j++) w.values[of(zeros, j)] = 0
        const q = Tensor.emptyQuantized(device, shape, { type: 'llm_int8', threshold: 6, transposed })
        ops.quantize(q, h.operand(w.values, shape, dtype).tensor)
        const expected = { codes: new Float64Array(n * k), absmax: new Float64Array(n), values: new Float64Array(n * k) }
        for (let i = 0; i < n; i++) {
          const { largest, codes } = codesOf(Float64Array.from({ length: k }, (_, j) => w.values[of(i, j)]!))
          expected.absmax[i] = largest
          expected.codes.set(codes, i * k)
          const scale = Math.fround(largest * Math.fround(1 / 127))
          for (let j = 0; j < k; j++) expected.values[of(i, j)] = Math.fround(codes[j]! * scale)
        }
        const [codes, absmax, values] = [h.garbage([n, k], 'int8'), h.garbage([n]), h.garbage(shape)]
        ops.quantized_export(codes, absmax, null, null, null, q)
        ops.dequantize(values, q)
        const name = `[${shape}]${transposed ? ' transposed' : ''} of ${dtype}`
        await h.close(t, codes, expected.codes, { absolute: 0, relative: 0 }, `${name}: codes`)
        await h.close(t, absmax, expected.absmax, { absolute: 0, relative: 0 }, `${name}: absmax`)
        await h.close(t, values, expected.values, { absolute: 0, relative: 0 }, `${name}: values`)
        const loaded = Tensor.emptyQuantized(device, shape, { type: 'llm_int8', threshold: 6, transposed })
        ops.quantized_load(loaded, codes, absmax, null, null, 0)
        const again = h.garbage(shape, 'bfloat16')
        ops.dequantize(again, loaded)
        await h.close(
          t,
          again,
          h.operand(expected.values, shape, 'bfloat16').values,
          { absolute: 0, relative: 0 },
          `${name}: loaded`,
        )
      }
    }
  }
})

/** What LLM.int8 multiplies in the place of x: codes times their scale, or x itself in columns with an outlier. */
function rounded(x: Operand, threshold: number): Operand {
  const [m, k] = x.shape as [number, number]
  const isOutlier = (value: number) => threshold > 0 && Math.abs(value) >= threshold
  const kept = Array.from({ length: k }, (_, j) => {
    for (let i = 0; i < m; i++) if (isOutlier(x.values[i * k + j]!)) return true
    return false
  })
  const values = new Float64Array(m * k)
  for (let i = 0; i < m; i++) {
    const row = x.values.subarray(i * k, (i + 1) * k)
    const { largest, codes } = codesOf(row, isOutlier)
    for (let j = 0; j < k; j++) values[i * k + j] = kept[j] ? row[j]! : (codes[j]! * largest) / 127
  }
  return { ...x, values }
}

/** The dequantized weight in float64, in the tensor's own layout. */
function exact({ codes, absmax, shape, ...rest }: Weight, transposed: boolean): Operand {
  const n = absmax.length
  const k = codes.length / n
  const values = Float64Array.from(codes, (_, i) => {
    const [output, input] = transposed ? [i % n, Math.floor(i / n)] : [Math.floor(i / k), i % k]
    return (codes[output * k + input]! * absmax[output]!) / 127
  })
  return { ...rest, shape, values }
}

interface Case {
  size: readonly [m: number, n: number, k: number, r: number]
  threshold: number
  transposed: 0 | 1
  lora: 'none' | 'x' | 'lora_x'
  dtype: 'float32' | 'bfloat16'
}

const sizes = [
  [1, 6, 5, 2],
  [2, 1, 1, 1],
  [4, 37, 192, 3],
  [6, 70, 65, 4],
  [9, 33, 31, 2],
  [45, 40, 130, 8],
  [150, 17, 64, 16],
  [70, 140, 260, 5],
] as const
const cases = sizes.flatMap((size, i) =>
  [6, 1, 0].flatMap((threshold, j) =>
    ([0, 1] as const).map(
      (transposed): Case => ({
        ...{ size, threshold, transposed },
        lora: (['none', 'x', 'lora_x'] as const)[(i + j + transposed) % 3]!,
        dtype: (i + j + transposed) % 2 === 0 ? 'float32' : 'bfloat16',
      }),
    ),
  ),
)
/** What a GPU does in wide tiles, and in several parts of k; many outliers. */
cases.push(
  { size: [140, 260, 96, 4], threshold: 6, transposed: 0, lora: 'x', dtype: 'bfloat16' },
  { size: [140, 260, 96, 4], threshold: 2, transposed: 1, lora: 'none', dtype: 'float32' },
  { size: [20, 30, 1100, 3], threshold: 6, transposed: 0, lora: 'none', dtype: 'bfloat16' },
  { size: [20, 30, 1100, 3], threshold: 3, transposed: 0, lora: 'lora_x', dtype: 'float32' },
)
const scale = 0.75

/** Normal numbers, a few of them far out or on the threshold, and a row of zeros where there are several. */
function input([m, k]: readonly [number, number], dtype: Case['dtype']): Operand {
  const { values } = h.random.normal([m, k], { dtype })
  if (k > 4) {
    values[2] = -20.5
    values[(m - 1) * k + k - 1] = 6
    values[Math.floor(m / 2) * k + 2] = 5.9375
  }
  if (m > 2) values.fill(0, k, 2 * k)
  return h.operand(values, [m, k], dtype)
}

for (const c of cases) {
  const { threshold, transposed, lora, dtype } = c
  const [m, n, k, r] = c.size
  const name = `${m} x ${k} to ${n}, threshold ${threshold}${transposed ? ', transposed' : ''}, adapter ${lora}, ${dtype}`
  t.test(name, async (t) => {
    const adapted = lora !== 'none'
    const w = await weight(n, k, transposed === 1, threshold, n > 3 ? 2 : -1)
    const x = input([m, k], dtype)
    const bias = n % 2 ? h.random.normal([n]) : null
    const loraX = lora === 'lora_x' ? h.random.normal([m, k], { dtype }) : null
    const a = adapted ? h.random.normal([r, k]) : null
    const b = adapted ? h.random.normal([n, r], { scale: 0.3 }) : null
    const rounds = roundsFactors(h, dtype)
    const near = (operand: Operand, transposed = false, own?: Float64Array) => factorOf(operand, rounds, transposed, own)
    const whole = exact(w, transposed === 1)
    const codes = rounded(x, threshold)

    const y = h.garbage([m, n], dtype)
    const loraH = a && h.garbage([m, r])
    const adapter = [loraX?.tensor ?? null, a?.tensor ?? null, b?.tensor ?? null] as const
    ops.linear(y, loraH, x.tensor, w.tensor, bias?.tensor ?? null, ...adapter, transposed, scale)
    let expected = product([m, n, k], matrix(codes), matrix(whole, transposed === 0))
    if (bias) expected = expected.map((value, i) => value + bias.values[i % n]!)
    // Rounded to float32 in the order of the sum, and to y's type before the adapter's part is added.
    const sums = product(
      [m, n, k],
      (i, j) => Math.abs(matrix(codes)(i, j)),
      (i, j) => Math.abs(matrix(whole, transposed === 0)(i, j)),
    )
    let error: Float64Array = sums.map((sum) => 1e-6 * sum)
    const source = loraX ?? x
    const hidden = a && operandOf(product([m, r, k], matrix(source), matrix(a, true)), [m, r])
    const hiddenError = a ? spread([m, r, k], near(source), near(a, true)).map((e) => e + 1e-4) : undefined
    if (hidden && b) {
      if (rounds) error = error.map((e, i) => e + 2 ** -8 * Math.abs(expected[i]!))
      expected = product([m, n, r], matrix(hidden), matrix(b, true), expected, scale)
      error = add(error, spread([m, n, r], near(hidden, false, hiddenError), near(b, true), scale))
    }
    await h.close(t, y, expected, widened(sumTolerance(r * 4, dtype, dtype), error), 'y')
    if (hidden && loraH)
      await h.close(t, loraH, hidden.values, widened(sumTolerance(k, 'float32', dtype), hiddenError!), 'lora_h')

    // The gradient is that of the dequantized weight.
    const dy = h.random.normal([m, n], { dtype })
    const accumulate = m % 2
    const dx = h.random.normal([m, k], { dtype })
    const dLoraX = loraX && h.garbage([m, k], dtype)
    const [dA, dB] = [a && h.zeros([r, k]), b && h.zeros([n, r])]
    ops.linear_backward(
      ...([dx.tensor, dLoraX, null, null, dA, dB, dy.tensor, x.tensor, w.tensor, ...adapter] as const),
      ...([loraH, transposed, scale, accumulate] as const),
    )
    const float = sumTolerance(Math.max(m, n, k) * (a ? 900 : 1), dtype, dtype)
    let dInput = product([m, k, n], matrix(dy), matrix(whole, transposed === 1), accumulate ? dx.values : null)
    let dError = spread([m, k, n], near(dy), near(whole, transposed === 1))
    if (a && b && dA && dB && hidden) {
      const up = operandOf(product([m, r, n], matrix(dy), matrix(b)), [m, r])
      const upError = spread([m, r, n], near(dy), near(b))
      if (!loraX) {
        dInput = product([m, k, r], matrix(up), matrix(a), dInput, scale)
        dError = add(dError, spread([m, k, r], near(up, false, upError), near(a), scale))
      }
      const dBExpected = product([n, r, m], matrix(dy, true), matrix(hidden), null, scale)
      const dBError = spread([n, r, m], near(dy, true), near(hidden, false, hiddenError), scale)
      await h.close(t, dB, dBExpected, widened(float, dBError), 'd_lora_b')
      const dAExpected = product([r, k, m], matrix(up, true), matrix(source), null, scale)
      await h.close(
        t,
        dA,
        dAExpected,
        widened(float, spread([r, k, m], near(up, true, upError), near(source), scale)),
        'd_lora_a',
      )
    }
    await h.close(t, dx.tensor, dInput, widened(float, dError), 'dx')
  })
}

t.test('a head: losses of its own logits, gradients of the dequantized weight', async (t) => {
  const [m, n, k] = [5, 19, 40]
  const w = await weight(n, k, false, 6)
  const x = input([m, k], 'float32')
  const rows = Tensor.from(
    device,
    Int32Array.from({ length: m }, (_, i) => i),
  )
  const targets = Int32Array.from({ length: m }, (_, i) => (7 * i) % n)
  const [losses, dx] = [h.garbage([m]), h.garbage([m, k])]
  const frozen = [null, null, null, null] as const
  ops.linear_cross_entropy(
    ...([losses, dx, ...frozen, x.tensor, w.tensor, null, null, null, rows, Tensor.from(device, targets), 0, 1] as const),
  )
  const logits = product([m, n, k], matrix(rounded(x, 6)), matrix(exact(w, false), true))
  const expected = new Float64Array(m)
  const slope = logits.map((logit, at) => {
    const i = Math.floor(at / n)
    const total = logits.subarray(i * n, (i + 1) * n).reduce((sum, value) => sum + Math.exp(value), 0)
    if (at % n === targets[i]) expected[i] = Math.log(total) - logit
    return Math.exp(logit) / total - (at % n === targets[i] ? 1 : 0)
  })
  await h.close(t, losses, expected, { absolute: 1e-3, relative: 1e-5 }, 'losses')
  const gradient = product([m, k, n], matrix({ ...x, values: slope, shape: [m, n] }), matrix(exact(w, false)))
  await h.close(t, dx, gradient, { absolute: 1e-3, relative: 1e-4 }, 'dx')
})

t.test('what is not a number stays none, and its neighbours stay numbers', async (t) => {
  const [m, n, k] = [3, 8, 64]
  const w = await weight(n, k, false, 0)
  const x = h.random.normal([m, k])
  x.values[k + 3] = Number.NaN
  const y = h.garbage([m, n])
  ops.linear(y, null, h.operand(x.values, [m, k]).tensor, w.tensor, null, null, null, null, 0, 1)
  const values = await h.read(y)
  t.ok(
    values.every((value, i) => Number.isNaN(value) === (Math.floor(i / n) === 1)),
    [...values].join(),
  )
})

t.test('a batch without rows', async (t) => {
  const w = await weight(3, 5, false, 6)
  const y = h.empty([0, 3])
  ops.linear(y, null, h.empty([0, 5]), w.tensor, null, null, null, null, 0, 1)
  t.same([...(await h.read(y))], [])
})

t.test('operands that do not fit are refused', async (t) => {
  const w = await weight(3, 4, false, 6)
  const linear = (y: Tensor, x: Tensor, weight: Tensor, transposed = 0) =>
    [y, () => ops.linear(y, null, x, weight, null, null, null, null, transposed, 1)] as const
  await h.rejects(t, ...linear(h.empty([2, 3]), h.empty([2, 4]), h.zeros([3, 4], 'int8')), /weight is int8/)
  await h.rejects(t, ...linear(h.empty([2, 4]), h.empty([2, 3]), w.tensor, 1), /other orientation/)
  const c = h.empty([2, 3])
  await h.rejects(t, c, () => ops.matmul(c, h.empty([2, 4]), w.tensor, 0, 1, 1, 0), /b is llm_int8/)
  const dw = h.zeros([3, 4])
  const backward = () =>
    ops.linear_backward(
      null,
      null,
      dw,
      null,
      null,
      null,
      h.empty([2, 3]),
      h.empty([2, 4]),
      w.tensor,
      null,
      null,
      null,
      null,
      0,
      1,
      0,
    )
  await h.rejects(t, dw, backward, /linear_backward.*weight is llm_int8/)
  const attempt = (codes: Tensor, absmax: Tensor) => {
    const out = h.garbage([3, 4])
    const load = () => {
      const q = Tensor.emptyQuantized(device, [3, 4], { type: 'llm_int8', threshold: 6 })
      ops.quantized_load(q, codes, absmax, null, null, 0)
      ops.dequantize(out, q)
    }
    return [out, load] as const
  }
  await h.rejects(t, ...attempt(h.zeros([3, 4], 'uint8'), h.zeros([3])), /quantized_load.*codes is uint8/)
  await h.rejects(t, ...attempt(h.zeros([4, 3], 'int8'), h.zeros([3])), /quantized_load.*codes has the shape/)
  await h.rejects(t, ...attempt(h.zeros([3, 4], 'int8'), h.zeros([4])), /quantized_load.*absmax/)
  const wide = Tensor.emptyQuantized(device, [1, 133145], { type: 'llm_int8', threshold: 6 })
  await h.rejects(t, ...linear(h.empty([1, 1]), h.empty([1, 133145]), wide), /at most 133144 inputs/)
  const code = 'ERR_INVALID_ARGUMENT'
  t.throws(() => Tensor.emptyQuantized(device, [4], { type: 'llm_int8', threshold: 6 }), { code, message: /matrix/ })
  t.throws(() => Tensor.emptyQuantized(device, [4, 4], { type: 'llm_int8', threshold: -1 }), { code, message: /threshold/ })
})
