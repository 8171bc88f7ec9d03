/** The fused loss of the head against float64, for its test files. */
import type { Test } from 'tap'
import type { Harness, Operand } from './harness.js'
import {
  add,
  factorOf,
  isFourBit,
  matrix,
  operandOf,
  product,
  roundsFactors,
  spread,
  type WeightType,
  weight,
  weightTypes,
  widened,
} from './matrices.js'

const scale = 0.6

interface Head {
  x: Operand
  w: Operand
  transposed: boolean
  bias: Operand | null
  a: Operand | null
  b: Operand | null
}

/** Losses of the targets and dlogits of their sum, with the part of it that is softmax, all float64. */
export function reference({ x, w, transposed, bias, a, b }: Head, rows: number[], targets: number[]) {
  const [m, k] = x.shape as [number, number]
  const n = w.shape[transposed ? 1 : 0]!
  const rowOf = matrix(w, transposed)
  let logits = product([m, n, k], matrix(x), (p, j) => rowOf(j, p))
  if (bias) logits = logits.map((value, i) => value + bias.values[i % n]!)
  const hidden = a && operandOf(product([m, a.shape[0]!, k], matrix(x), matrix(a, true)), [m, a.shape[0]!])
  if (hidden && b) logits = product([m, n, hidden.shape[1]!], matrix(hidden), matrix(b, true), logits, scale)
  const gradient = new Float64Array(m * n)
  const softmax = new Float64Array(m * n)
  const losses = targets.map((target, i) => {
    const row = rows[i]!
    const values = logits.subarray(row * n, (row + 1) * n)
    const top = values.reduce((most, value) => Math.max(most, value), -Infinity)
    const sum = values.reduce((total, value) => total + Math.exp(value - top), 0)
    values.forEach((value, j) => {
      softmax[row * n + j]! += Math.exp(value - top) / sum
      gradient[row * n + j]! += Math.exp(value - top) / sum - (j === target ? 1 : 0)
    })
    return top + Math.log(sum) - values[target]!
  })
  return { losses, hidden, softmax, gradient: operandOf(gradient, [m, n]) }
}

/** How far losses and gradients may be from the reference because factors are rounded. */
function errorsOf(h: Harness, { x, w, transposed, a, b }: Head, expected: ReturnType<typeof reference>, rows: number[]) {
  const near = (operand: Operand, transposed = false, own?: Float64Array) => factorOf(operand, true, transposed, own)
  // A GPU keeps a chunk's dlogits in bfloat16 for all that is made of them; the CPU rounds them for its products alone.
  const keepsRounded = h.device.name.startsWith('cuda')
  const [m, k] = x.shape as [number, number]
  const n = w.shape[transposed ? 1 : 0]!
  const { hidden, softmax, gradient } = expected
  let logits = spread([m, n, k], near(x), near(w, !transposed))
  const r = a?.shape[0] ?? 0
  const hiddenError = a && spread([m, r, k], near(x), near(a, true))
  if (hidden && hiddenError && b)
    logits = add(logits, spread([m, n, r], near(hidden, false, hiddenError), near(b, true), scale))
  const most = Float64Array.from({ length: m }, (_, i) =>
    logits.subarray(i * n, (i + 1) * n).reduce((p, q) => Math.max(p, q), 0),
  )
  // Logits that are off by e move a softmax by a factor of e^2e at most, its logarithm and a loss by 2e.
  const own = softmax.map((p, i) => p * Math.expm1(2 * most[Math.floor(i / n)]!))
  const slope = (transposed = false) => near(gradient, transposed, own)
  const errors: Record<'losses' | 'dx' | 'dw' | 'db' | 'dA' | 'dB', Float64Array> = {
    losses: Float64Array.from(rows, (row) => 2 * most[row]!),
    dx: spread([m, k, n], slope(), near(w, transposed)),
    dw: transposed ? spread([k, n, m], near(x, true), slope()) : spread([n, k, m], slope(true), near(x)),
    db: Float64Array.from({ length: n }, (_, v) => {
      const off = (i: number) => (keepsRounded ? slope().error(i, v) : own[i * n + v]!)
      return Array.from({ length: m }, (_, i) => off(i)).reduce((sum, e) => sum + e, 0)
    }),
    dA: new Float64Array(),
    dB: new Float64Array(),
  }
  if (a && b && hidden && hiddenError) {
    const up = operandOf(product([m, r, n], matrix(gradient), matrix(b)), [m, r])
    const upError = spread([m, r, n], slope(), near(b))
    errors.dx = add(errors.dx, spread([m, k, r], near(up, false, upError), near(a), scale))
    errors.dA = spread([r, k, m], near(up, true, upError), near(x), scale)
    errors.dB = spread([n, r, m], slope(true), near(hidden, false, hiddenError), scale)
  }
  return errors
}

function targetsFor(h: Harness, rows: number, vocabulary: number, count: number, dense: boolean) {
  const { values } = h.random.integers([count], 0, rows)
  const target_rows = dense ? Array.from({ length: count }, (_, i) => Math.min(i, rows - 1)) : [...values].sort((p, q) => p - q)
  return { rows: target_rows, targets: [...h.random.integers([count], 0, vocabulary).values] }
}

/** m rows of k numbers, n words; `count` targets, in ascending rows that may repeat or (dense) in every row. */
export interface LossSize {
  m: number
  n: number
  k: number
  count: number
  dense: boolean
}

/** Losses and all gradients of each size with weights of each type; transposed or not, with and without bias and adapter in turn. */
export function testLosses(
  t: Test,
  h: Harness,
  sizes: readonly LossSize[],
  dtypes: (type: number) => 'float32' | 'bfloat16',
): void {
  for (const [s, size] of sizes.entries())
    for (const [j, type] of weightTypes.entries()) {
      const transposed = (s + j) % 2 === 1
      const dtype = dtypes(j)
      const { m, n, count } = size
      const name = `${count} targets in ${m} rows, ${n} words, ${type}${transposed ? ' transposed' : ''}, ${dtype}`
      t.test(name, (t) => testLoss(t, h, size, { j, type, transposed, dtype }))
    }
}

interface LossCase {
  j: number
  type: WeightType
  transposed: boolean
  dtype: 'float32' | 'bfloat16'
}

async function testLoss(
  t: Test,
  h: Harness,
  { m, n, k, count, dense }: LossSize,
  { j, type, transposed, dtype }: LossCase,
): Promise<void> {
  const r = 3
  const x = h.random.normal([m, k], { dtype })
  const w = await weight(h, transposed ? [k, n] : [n, k], type)
  const bias = j % 2 ? h.random.normal([n]) : null
  const a = j % 3 ? h.random.normal([r, k], { scale: 0.3 }) : null
  const b = a && h.random.normal([n, r], { scale: 0.3 })
  const { rows, targets } = targetsFor(h, m, n, count, dense)
  const head = { x, w, transposed, bias, a, b }
  const expected = reference(head, rows, targets)
  const { losses, hidden, gradient } = expected
  const errors = roundsFactors(h, dtype) ? errorsOf(h, head, expected, rows) : null
  const out = {
    losses: h.garbage([count]),
    dx: h.garbage([m, k], dtype),
    dw: isFourBit(type) ? null : h.garbage(w.shape),
    db: bias && h.garbage([n]),
    dA: a && h.garbage([r, k]),
    dB: b && h.garbage([n, r]),
  }
  const indices = [h.operand(rows, [count], 'int32').tensor, h.operand(targets, [count], 'int32').tensor] as const
  const operands = [x.tensor, w.tensor, bias?.tensor ?? null, a?.tensor ?? null, b?.tensor ?? null, ...indices] as const
  h.ops.linear_cross_entropy(out.losses, out.dx, out.dw, out.db, out.dA, out.dB, ...operands, Number(transposed), scale)
  const close = { absolute: 3e-5 * Math.sqrt(count), relative: 2e-5 }
  const within = (name: keyof NonNullable<typeof errors>, exact = close) => (errors ? widened(exact, errors[name]) : exact)
  await h.close(t, out.losses, losses, within('losses'), 'losses')
  const rowOf = matrix(w, transposed)
  let dx = product([m, k, n], matrix(gradient), rowOf)
  if (a && b && hidden && out.dA && out.dB) {
    const up = operandOf(product([m, r, n], matrix(gradient), matrix(b)), [m, r])
    dx = product([m, k, r], matrix(up), matrix(a), dx, scale)
    await h.close(t, out.dA, product([r, k, m], matrix(up, true), matrix(x), null, scale), within('dA'), 'd_lora_a')
    await h.close(t, out.dB, product([n, r, m], matrix(gradient, true), matrix(hidden), null, scale), within('dB'), 'd_lora_b')
  }
  await h.close(t, out.dx, dx, within('dx', dtype === 'float32' ? close : { absolute: 1e-4, relative: 5e-3 }), 'dx')
  if (out.dw) {
    const dw = transposed
      ? product([k, n, m], matrix(x, true), matrix(gradient))
      : product([n, k, m], matrix(gradient, true), matrix(x))
    await h.close(t, out.dw, dw, within('dw'), 'd_weight')
  }
  const sums = Float64Array.from({ length: n }, (_, v) => gradient.values.reduce((sum, g, i) => sum + (i % n === v ? g : 0), 0))
  if (out.db) await h.close(t, out.db, sums, within('db'), 'd_bias')
  const alone = h.garbage([count])
  h.ops.linear_cross_entropy(alone, null, null, null, null, null, ...operands, Number(transposed), scale)
  await h.equal(t, alone, await h.read(out.losses), 'the same losses without gradients')
}
