import t from 'tap'
import { dot, numericGradient, type Operand, openHarness } from './harness.js'
import {
  add,
  factorOf,
  isFourBit,
  matrix,
  operandOf,
  product,
  roundsFactors,
  spread,
  sumTolerance,
  type WeightType,
  weight,
  weightTypes,
  widened,
} from './matrices.js'

const h = await openHarness()

interface Case {
  m: number
  n: number
  k: number
  r: number
  type: WeightType
  transposed: 0 | 1
  /** Which input the adapter reads: none, the layer's, or its own (dropout). */
  lora: 'none' | 'x' | 'lora_x'
  bias: boolean
  dtype: 'float32' | 'bfloat16'
}

const scale = 0.75
const sizes = [
  [1, 6, 5, 2],
  [7, 33, 65, 3],
  [45, 40, 128, 8],
  [9, 70, 64, 33],
  [150, 17, 64, 16],
] as const
const cases: Case[] = sizes.flatMap(([m, n, k, r], i) =>
  weightTypes.flatMap((type, j) =>
    ([0, 1] as const).map((transposed) => ({
      ...{ m, n, k, r, type, transposed },
      lora: (['none', 'x', 'lora_x'] as const)[(i + j + transposed) % 3]!,
      bias: (i + j) % 2 === 0,
      dtype: (i + j + transposed) % 4 === 3 ? ('bfloat16' as const) : ('float32' as const),
    })),
  ),
)

/** What a GPU does in tiles, in several parts of k, or row by row of the weight. */
const tiles = [
  [140, 390, 64, 16, 'nf4', 0, 'x'],
  [70, 448, 64, 5, 'fp4', 1, 'lora_x'],
  [70, 400, 72, 9, 'bfloat16', 0, 'x'],
  [33, 70, 832, 8, 'nf4', 0, 'none'],
  [6, 50, 2240, 4, 'nf4', 0, 'x'],
  [12, 20, 520, 3, 'bfloat16', 0, 'lora_x'],
] as const
/** Where a GPU computes an adapter's inner product in the same launch: enough of k, forward, backward or both. */
const inner = [
  [150, 200, 320, 64, 'nf4', 0, 'x'],
  [300, 260, 270, 1, 'bfloat16', 0, 'x'],
  [65, 256, 200, 8, 'fp4', 1, 'x'],
  [33, 330, 331, 40, 'float16', 0, 'x'],
  [300, 199, 64, 16, 'nf4', 0, 'x'],
  [2060, 5, 256, 2, 'nf4', 0, 'x'],
] as const
/** What a CPU does with few rows: the weight as it lies in memory, codes in whole and in half registers. */
const few = [
  [1, 37, 576, 4, 'nf4', 0, 'x'],
  [2, 21, 192, 3, 'fp4', 0, 'none'],
  [3, 18, 192, 2, 'nf4', 0, 'lora_x'],
  [4, 9, 320, 5, 'nf4', 0, 'x'],
  [5, 30, 70, 2, 'bfloat16', 0, 'x'],
] as const
for (const [m, n, k, r, type, transposed, lora] of [...tiles, ...inner, ...few])
  cases.push({ ...{ m, n, k, r, type, transposed, lora }, bias: true, dtype: 'bfloat16' })

async function operands({ m, n, k, r, type, transposed, lora, bias, dtype }: Case) {
  const adapted = lora !== 'none'
  return {
    x: h.random.normal([m, k], { dtype }),
    dy: h.random.normal([m, n], { dtype }),
    w: await weight(h, transposed ? [k, n] : [n, k], type),
    bias: bias ? h.random.normal([n], { dtype }) : null,
    loraX: lora === 'lora_x' ? h.random.normal([m, k], { dtype }) : null,
    a: adapted ? h.random.normal([r, k]) : null,
    b: adapted ? h.random.normal([n, r], { scale: 0.3 }) : null,
  }
}

for (const c of cases) {
  const { m, n, k, r, transposed, dtype } = c
  const name = `${m} x ${k} to ${n}, ${c.type}${transposed ? ' transposed' : ''}, adapter ${c.lora} of rank ${r}, ${dtype}`
  t.test(name, async (t) => {
    const { x, dy, w, bias, loraX, a, b } = await operands(c)
    const rows = matrix(w, transposed === 1) // [n, k]
    const source = loraX ?? x
    const accurate = sumTolerance(k + r * 4, dtype, dtype)
    const float = sumTolerance(Math.max(m, n, k) * (a ? 30 : 1), 'float32', dtype)
    const rounds = roundsFactors(h, dtype)
    const near = (operand: Operand, transposed = false, own?: Float64Array) => factorOf(operand, rounds, transposed, own)

    const y = h.garbage([m, n], dtype)
    const loraH = a && h.garbage([m, r])
    h.ops.linear(
      y,
      loraH,
      x.tensor,
      w.tensor,
      bias?.tensor ?? null,
      loraX?.tensor ?? null,
      a?.tensor ?? null,
      b?.tensor ?? null,
      transposed,
      scale,
    )
    let expected = product([m, n, k], matrix(x), (p, j) => rows(j, p))
    if (bias) expected = expected.map((value, i) => value + bias.values[i % n]!)
    const hidden = a && operandOf(product([m, r, k], matrix(source), matrix(a, true)), [m, r])
    let error = spread([m, n, k], near(x), near(w, transposed === 0))
    const hiddenError = a ? spread([m, r, k], near(source), near(a, true)) : undefined
    if (hidden && b) {
      expected = product([m, n, r], matrix(hidden), matrix(b, true), expected, scale)
      error = add(error, spread([m, n, r], near(hidden, false, hiddenError), near(b, true), scale))
    }
    await h.close(t, y, expected, widened(dtype === 'float32' ? float : accurate, error), 'y')
    if (hidden && loraH)
      await h.close(t, loraH, hidden.values, widened(sumTolerance(k, 'float32', dtype), hiddenError!), 'lora_h')

    const accumulate = m % 2
    const [dx, db] = [h.random.normal([m, k], { dtype }), h.random.normal([n])]
    const dw = isFourBit(c.type) ? null : h.random.normal(w.shape)
    const dA = a && h.random.normal([r, k])
    const dB = b && h.random.normal([n, r])
    const dLoraX = loraX && h.garbage([m, k], dtype)
    h.ops.linear_backward(
      dx.tensor,
      dLoraX,
      dw?.tensor ?? null,
      db.tensor,
      dA?.tensor ?? null,
      dB?.tensor ?? null,
      dy.tensor,
      x.tensor,
      w.tensor,
      loraX?.tensor ?? null,
      a?.tensor ?? null,
      b?.tensor ?? null,
      transposed ? loraH : null,
      transposed,
      scale,
      accumulate,
    )
    let input = product([m, k, n], matrix(dy), rows, accumulate ? dx.values : null)
    let inputError = spread([m, k, n], near(dy), near(w, transposed === 1))
    if (a && b && dA && dB && hidden) {
      const up = operandOf(product([m, r, n], matrix(dy), matrix(b)), [m, r])
      const upError = spread([m, r, n], near(dy), near(b))
      const own = product([m, k, r], matrix(up), matrix(a), loraX ? null : input, scale)
      const ownError = spread([m, k, r], near(up, false, upError), near(a), scale)
      if (dLoraX) await h.close(t, dLoraX, own, widened(dtype === 'float32' ? float : accurate, ownError), 'd_lora_x')
      else [input, inputError] = [own, add(inputError, ownError)]
      const dAExpected = product([r, k, m], matrix(up, true), matrix(source), dA.values, scale)
      const dAError = spread([r, k, m], near(up, true, upError), near(source), scale)
      await h.close(t, dA.tensor, dAExpected, widened(float, dAError), 'd_lora_a')
      const dBExpected = product([n, r, m], matrix(dy, true), matrix(hidden), dB.values, scale)
      const dBError = spread([n, r, m], near(dy, true), near(hidden, false, hiddenError), scale)
      await h.close(t, dB.tensor, dBExpected, widened(float, dBError), 'd_lora_b')
    }
    await h.close(t, dx.tensor, input, widened(dtype === 'float32' ? float : accurate, inputError), 'dx')
    if (dw) {
      const expected = transposed
        ? product([k, n, m], matrix(x, true), matrix(dy), dw.values)
        : product([n, k, m], matrix(dy, true), matrix(x), dw.values)
      await h.close(t, dw.tensor, expected, float, 'd_weight')
    }
    const dbExpected = db.values.map((value, j) => {
      for (let i = 0; i < m; i++) value += dy.values[i * n + j]!
      return value
    })
    await h.close(t, db.tensor, dbExpected, float, 'd_bias')
  })
}

t.test('gradients are those of the forward, by finite differences', async (t) => {
  const [m, n, k, r] = [4, 5, 6, 2]
  const [x, dy, w] = [h.random.normal([m, k]), h.random.normal([m, n]), h.random.normal([n, k])]
  const [a, b, bias] = [h.random.normal([r, k]), h.random.normal([n, r]), h.random.normal([n])]
  const loss = (values: { [name in 'x' | 'w' | 'a' | 'b' | 'bias']?: Float64Array }): number => {
    const of = (name: keyof typeof values, operand: Operand) => ({ ...operand, values: values[name] ?? operand.values })
    const [x_, a_, b_] = [of('x', x), of('a', a), of('b', b)]
    const hidden = operandOf(product([m, r, k], matrix(x_), matrix(a_, true)), [m, r])
    let y = product([m, n, k], matrix(x_), matrix(of('w', w), true))
    y = product([m, n, r], matrix(hidden), matrix(b_, true), y, scale)
    return dot(
      y.map((value, i) => value + of('bias', bias).values[i % n]!),
      dy.values,
    )
  }
  const [dx, dw, db, dA, dB] = [h.garbage([m, k]), h.zeros([n, k]), h.zeros([n]), h.zeros([r, k]), h.zeros([n, r])]
  h.ops.linear_backward(
    ...([dx, null, dw, db, dA, dB, dy.tensor, x.tensor, w.tensor, null, a.tensor, b.tensor, null, 0, scale, 0] as const),
  )
  const close = { absolute: 1e-5, relative: 1e-5 }
  const pairs = [
    ['x', dx, x],
    ['w', dw, w],
    ['bias', db, bias],
    ['a', dA, a],
    ['b', dB, b],
  ] as const
  for (const [name, gradient, { values }] of pairs)
    await h.close(
      t,
      gradient,
      numericGradient((v) => loss({ [name]: v }), values),
      close,
      `d ${name}`,
    )
})

t.test('a batch without rows leaves gradients as they are', async (t) => {
  const [x, dy, w] = [h.empty([0, 4]), h.empty([0, 3]), h.random.normal([3, 4])]
  const dw = h.random.normal([3, 4])
  h.ops.linear_backward(null, null, dw.tensor, null, null, null, dy, x, w.tensor, null, null, null, null, 0, 1, 0)
  await h.equal(t, dw.tensor, dw.values)
})

t.test('operands that do not fit are refused', async (t) => {
  const [x, w, a, b] = [h.empty([2, 4]), h.empty([3, 4]), h.empty([2, 4]), h.empty([3, 2])]
  const linear = (y = h.empty([2, 3]), weight_ = w, bias = h.empty([3]), b_ = b, transposed = 0) =>
    [y, () => h.ops.linear(y, null, x, weight_, bias, null, a, b_, transposed, 1)] as const
  await h.rejects(t, ...linear(h.empty([2, 4])), /linear.*\[2, 4\]/)
  await h.rejects(t, ...linear(h.empty([2, 3]), h.empty([3, 5])), /linear/)
  await h.rejects(t, ...linear(h.empty([2, 3]), w, h.empty([4])), /linear.*bias/)
  await h.rejects(t, ...linear(h.empty([2, 3]), w, h.empty([3]), h.empty([3, 3])), /linear.*lora_b/)
  await h.rejects(t, ...linear(h.empty([2, 3]), w, h.empty([3]), b, 1), /linear/)
  const [frozen, dw] = [await weight(h, [3, 4], 'nf4'), h.zeros([3, 4])]
  const backward = () =>
    h.ops.linear_backward(null, null, dw, null, null, null, h.empty([2, 3]), x, frozen.tensor, null, null, null, null, 0, 1, 0)
  await h.rejects(t, dw, backward, /linear_backward.*weight is nf4/)
})
