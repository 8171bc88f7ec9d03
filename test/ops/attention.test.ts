import t, { type Test } from 'tap'
import type { Tensor } from '../../lib/tensor/index.js'
import { type Operand, openHarness } from './harness.js'

const h = await openHarness()

interface Shape {
  queries: number
  keys: number
  heads: number
  kvHeads: number
  size: number
}

/** Row i, head h of [T, heads, size]. */
const at = (x: ArrayLike<number>, i: number, head: number, heads: number, size: number) =>
  Float64Array.from({ length: size }, (_, d) => x[(i * heads + head) * size + d]!)
const product = (a: Float64Array, b: Float64Array) => a.reduce((sum, x, d) => sum + x * b[d]!, 0)

/**
 * Attention and its gradients in float64, by the definition: key j is visible to query i iff j <= rows[i] < end[j]; a query that
 * sees nothing has o = 0, lse = -Infinity. Beside each result stands a bound of its error where operands, o and dq are rounded to a
 * type of unit roundoff `u`, and so are probabilities and their gradients before they are multiplied (first order; sums in float32
 * come on top): o = Σ p v errs by u Σ p |v| and its own rounding, delta = Σ dO o by what o errs, dS = p (dP - delta) by p times
 * that and its own rounding, and so on down.
 */
function reference(
  s: Shape,
  [q, k, v, dO]: Float64Array[],
  rows: ArrayLike<number>,
  end: ArrayLike<number>,
  scale: number,
  u = 0,
) {
  const zeros = () => ({
    o: new Float64Array(q!.length),
    lse: new Float64Array(s.queries * s.heads),
    dq: new Float64Array(q!.length),
    dk: new Float64Array(k!.length),
    dv: new Float64Array(v!.length),
  })
  const [values, bounds] = [zeros(), zeros()]
  const group = s.heads / s.kvHeads
  for (let i = 0; i < s.queries; i++) {
    for (let head = 0; head < s.heads; head++) {
      const kv = Math.floor(head / group)
      const first = (i * s.heads + head) * s.size
      const visible = Array.from({ length: s.keys }, (_, j) => j).filter((j) => j <= rows[i]! && rows[i]! < end[j]!)
      const query = at(q!, i, head, s.heads, s.size)
      const gradient = at(dO!, i, head, s.heads, s.size)
      const scores = visible.map((j) => scale * product(query, at(k!, j, kv, s.kvHeads, s.size)))
      const highest = Math.max(...scores)
      const total = scores.reduce((sum, x) => sum + Math.exp(x - highest), 0)
      values.lse[i * s.heads + head] = visible.length > 0 ? highest + Math.log(total) : Number.NEGATIVE_INFINITY
      const p = scores.map((x) => Math.exp(x - highest) / total)
      visible.forEach((j, n) => {
        for (let d = 0; d < s.size; d++) {
          const x = p[n]! * v![(j * s.kvHeads + kv) * s.size + d]!
          values.o[first + d]! += x
          bounds.o[first + d]! += u * Math.abs(x)
        }
      })
      let deltaBound = 0
      for (let d = 0; d < s.size; d++) {
        bounds.o[first + d]! += u * Math.abs(values.o[first + d]!)
        deltaBound += Math.abs(gradient[d]!) * bounds.o[first + d]!
      }
      const dp = visible.map((j) => product(gradient, at(v!, j, kv, s.kvHeads, s.size)))
      const delta = p.reduce((sum, x, n) => sum + x * dp[n]!, 0)
      visible.forEach((j, n) => {
        const ds = p[n]! * (dp[n]! - delta) * scale
        const dsBound = u * Math.abs(ds) + p[n]! * deltaBound * scale
        for (let d = 0; d < s.size; d++) {
          const b = (j * s.kvHeads + kv) * s.size + d
          values.dq[first + d]! += ds * k![b]!
          bounds.dq[first + d]! += dsBound * Math.abs(k![b]!)
          values.dk[b]! += ds * q![first + d]!
          bounds.dk[b]! += dsBound * Math.abs(q![first + d]!)
          values.dv[b]! += p[n]! * gradient[d]!
          bounds.dv[b]! += u * p[n]! * Math.abs(gradient[d]!)
        }
      })
      for (let d = 0; d < s.size; d++) bounds.dq[first + d]! += u * Math.abs(values.dq[first + d]!)
    }
  }
  return { values, bounds }
}

/** The subtree ends of a random forest of segments; now and then a token that nothing attends to. */
function forest(keys: number): number[] {
  const end = new Array<number>(keys).fill(0)
  const draw = (n: number) => 1 + Math.floor(h.random.next() * n)
  const segment = (from: number, to: number, depth: number): void => {
    const length = depth === 4 ? to - from : draw(to - from)
    for (let j = from; j < from + length; j++) end[j] = h.random.next() < 0.05 ? j + 1 : to
    children(from + length, to, depth + 1)
  }
  const children = (from: number, to: number, depth: number): void => {
    for (let next = from; next < to; ) {
      const size = draw(to - next)
      segment(next, next + size, depth)
      next += size
    }
  }
  children(0, keys, 0)
  return end
}

interface Call {
  shape: Shape
  operands: Operand[]
  rows: Operand | null
  end: Operand
  scale: number
}

/** Forward and backward on the device; outputs hold garbage before. */
function run({ shape: s, operands, rows, end, scale }: Call) {
  const dtype = operands[0]!.tensor.dtype
  const [q, k, v, dO] = operands.map((x) => x.tensor) as [Tensor, Tensor, Tensor, Tensor]
  const plan = h.garbage([h.device.attentionPlanSize(s.queries, s.keys)], 'int32')
  const index = rows?.tensor ?? null
  h.ops.attention_plan(plan, index, end.tensor, s.queries)
  const o = h.garbage(q.shape, dtype)
  const lse = h.garbage([s.queries, s.heads])
  h.ops.attention(o, lse, q, k, v, index, end.tensor, plan, scale)
  const [dq, dk, dv] = [h.garbage(q.shape, dtype), h.garbage(k.shape), h.garbage(k.shape)]
  h.ops.attention_backward(dq, dk, dv, dO, o, lse, q, k, v, index, end.tensor, plan, scale)
  return { o, lse, dq, dk, dv, plan }
}

function makeCall(s: Shape, dtype: 'float32' | 'bfloat16', end: number[], rows: number[] | null): Call {
  const q = [s.queries, s.heads, s.size]
  const k = [s.keys, s.kvHeads, s.size]
  return {
    shape: s,
    operands: [q, k, k, q].map((shape) => h.random.normal(shape, { dtype })),
    rows: rows && h.operand(rows, undefined, 'int32'),
    end: h.operand(end, undefined, 'int32'),
    scale: 1 / Math.sqrt(s.size),
  }
}

const largest = (x: Float64Array) => x.reduce((most, v) => Math.max(most, Number.isFinite(v) ? Math.abs(v) : 0), 0)
const numbers = (n: number) => Array.from({ length: n }, (_, i) => i)

async function verify(t: Test, call: Call): Promise<void> {
  const { operands, rows, end, shape, scale } = call
  const values = operands.map((x) => x.values)
  const u = operands[0]!.tensor.dtype === 'bfloat16' ? 2 ** -8 : 0
  const expected = reference(shape, values, rows?.values ?? numbers(shape.queries), end.values, scale, u)
  const actual = run(call)
  for (const name of ['o', 'lse', 'dq', 'dk', 'dv'] as const) {
    const sums = 3e-6 * Math.max(largest(expected.values[name]), 1) // float32
    await within(t, actual[name], expected.values[name], expected.bounds[name], sums, name)
  }
}

/** Every value within its own bound (first order, hence a hundredth more) and what all may err by. */
async function within(t: Test, actual: Tensor, expected: Float64Array, bounds: Float64Array, all: number, name: string) {
  const values = await h.read(actual)
  const wrong = values.findIndex((x, i) => x !== expected[i] && !(Math.abs(x - expected[i]!) <= 1.01 * bounds[i]! + all))
  if (wrong < 0) t.pass(`${name} within its bounds`)
  else t.fail(`${name}: ${values[wrong]} instead of ${expected[wrong]} at ${wrong}`, { bound: bounds[wrong]! + all })
}

const shapes: Shape[] = [
  { queries: 1, keys: 1, heads: 1, kvHeads: 1, size: 3 },
  { queries: 67, keys: 67, heads: 3, kvHeads: 1, size: 64 },
  { queries: 131, keys: 131, heads: 4, kvHeads: 2, size: 20 },
  { queries: 64, keys: 64, heads: 2, kvHeads: 2, size: 80 },
  { queries: 40, keys: 40, heads: 5, kvHeads: 1, size: 96 },
  { queries: 33, keys: 33, heads: 2, kvHeads: 1, size: 128 },
  { queries: 200, keys: 200, heads: 2, kvHeads: 1, size: 40 },
  { queries: 70, keys: 70, heads: 1, kvHeads: 1, size: 200 },
]

for (const dtype of ['float32', 'bfloat16'] as const) {
  for (const s of shapes) {
    t.test(`attention ${dtype} ${JSON.stringify(s)}`, async (t) => {
      await t.test('one causal sequence', (t) => verify(t, makeCall(s, dtype, new Array(s.keys).fill(s.keys), null)))
      await t.test('a random forest', (t) => verify(t, makeCall(s, dtype, forest(s.keys), null)))
    })
  }

  t.test(`queries that see no key ${dtype}`, async (t) => {
    const s: Shape = { queries: 90, keys: 90, heads: 2, kvHeads: 1, size: 16 }
    const end = numbers(s.keys).map((j) => (j < 70 ? Math.min(j, 3) : s.keys))
    await verify(t, makeCall(s, dtype, end, null))
  })

  t.test(`fewer queries than keys ${dtype}`, async (t) => {
    for (const [queries, keys] of [
      [1, 70],
      [35, 150],
      [3, 129],
    ] as const) {
      const s: Shape = { queries, keys, heads: 6, kvHeads: 2, size: 16 }
      const rows = numbers(keys)
        .sort(() => h.random.next() - 0.5)
        .slice(0, queries)
        .sort((a, b) => a - b)
      await verify(t, makeCall(s, dtype, forest(keys), rows))
    }
  })
}

t.test('many key heads, each with several query heads', (t) => {
  const s: Shape = { queries: 3, keys: 3, heads: 1024, kvHeads: 512, size: 8 }
  return verify(t, makeCall(s, 'bfloat16', [3, 2, 3], null))
})

t.test('a tree gives the values of its samples, and the sum of their gradients', async (t) => {
  const prefix = 50
  const branches = [20, 35, 1]
  const tree: Shape = { queries: prefix + 56, keys: prefix + 56, heads: 4, kvHeads: 2, size: 32 }
  const starts = branches.map((_, b) => prefix + branches.slice(0, b).reduce((sum, n) => sum + n, 0))
  const end = [
    ...new Array(prefix).fill(tree.keys),
    ...branches.flatMap((n, b) => new Array(n).fill(starts[b]! + n)),
  ] as number[]
  const whole = makeCall(tree, 'float32', end, null)
  const actual = run(whole)
  const read = async (x: Tensor) => h.read(x)
  const [o, dq, dk, dv] = await Promise.all([actual.o, actual.dq, actual.dk, actual.dv].map(read))
  const summed = { dq: new Float64Array(dq!.length), dk: new Float64Array(dk!.length), dv: new Float64Array(dv!.length) }

  for (const [b, length] of branches.entries()) {
    const tokens = [...numbers(prefix), ...numbers(length).map((i) => starts[b]! + i)]
    const s: Shape = { ...tree, queries: tokens.length, keys: tokens.length }
    const pick = (x: Operand) => {
      const width = x.values.length / tree.keys
      const values = tokens.flatMap((token) => [...x.values.subarray(token * width, (token + 1) * width)])
      return h.operand(values, [tokens.length, ...x.shape.slice(1)])
    }
    const operands = whole.operands.map(pick)
    if (b > 0) operands[3]!.tensor.rows(0, prefix).write(new Float32Array(prefix * tree.heads * tree.size)) // counted once
    const alone = run({
      ...whole,
      shape: s,
      operands,
      end: h.operand(
        tokens.map(() => s.keys),
        undefined,
        'int32',
      ),
    })
    const [sampleO, ...gradients] = await Promise.all([alone.o, alone.dq, alone.dk, alone.dv].map(read))
    const width = tree.heads * tree.size
    const expected = tokens.flatMap((token) => [...o!.subarray(token * width, (token + 1) * width)])
    t.ok(
      expected.every((x, i) => Math.abs(x - sampleO![i]!) < 1e-6),
      `outputs of sample ${b}`,
    )
    for (const [n, name] of (['dq', 'dk', 'dv'] as const).entries()) {
      const columns = gradients[n]!.length / tokens.length
      tokens.forEach((token, i) => {
        for (let c = 0; c < columns; c++) summed[name][token * columns + c]! += gradients[n]![i * columns + c]!
      })
    }
  }
  for (const [name, gradient] of [
    ['dq', dq!],
    ['dk', dk!],
    ['dv', dv!],
  ] as const) {
    const worst = gradient.reduce((most, x, i) => Math.max(most, Math.abs(x - summed[name][i]!)), 0)
    t.ok(worst < 2e-5, `${name} is the samples' sum (deviation ${worst})`)
  }
})

t.test('large scores do not overflow, and results repeat', async (t) => {
  const s: Shape = { queries: 70, keys: 70, heads: 2, kvHeads: 1, size: 16 }
  const call = makeCall(s, 'float32', forest(70), null)
  call.scale = 40
  const first = run(call)
  const second = run(call)
  const expected = reference(
    s,
    call.operands.map((x) => x.values),
    numbers(70),
    call.end.values,
    40,
  )
  await h.close(t, first.o, expected.values.o, { absolute: 3e-4, relative: 0 })
  for (const name of ['o', 'lse', 'dq', 'dk', 'dv'] as const) {
    await h.equal(t, second[name], await h.read(first[name]), `${name} repeats bit for bit`)
  }
})

t.test('a key that is NaN makes NaN of what sees it, in values and gradients, and of nothing else', async (t) => {
  const s: Shape = { queries: 150, keys: 150, heads: 2, kvHeads: 1, size: 16 }
  const end = numbers(150).map((j) => (j < 100 ? 100 : 150)) // two sequences
  const call = makeCall(s, 'float32', end, null)
  const [q, k, v, dO] = call.operands as [Operand, Operand, Operand, Operand]
  k.values[70 * 16 + 3] = Number.NaN
  const { o, dq } = run({ ...call, operands: [q, h.operand([...k.values], k.shape), v, dO] })
  for (const [name, tensor] of Object.entries({ o, dq })) {
    const values = await h.read(tensor)
    const rows = numbers(150).filter((i) => Number.isNaN(values[i * 32 + 8]))
    t.same(
      rows,
      numbers(30).map((i) => i + 70),
      `${name} of the queries that follow it`,
    )
  }
})

t.test('refused', async (t) => {
  const s: Shape = { queries: 3, keys: 5, heads: 2, kvHeads: 1, size: 4 }
  const [q, k] = [h.zeros([3, 2, 4]), h.zeros([5, 1, 4])]
  const end = h.operand([5, 5, 5, 5, 5], undefined, 'int32').tensor
  const rows = h.operand([0, 2, 4], undefined, 'int32').tensor
  const plan = h.garbage([h.device.attentionPlanSize(3, 5)], 'int32')
  h.ops.attention_plan(plan, rows, end, s.queries)
  const refused = (queue: (o: Tensor) => void, pattern: RegExp) => {
    const o = h.empty([3, 2, 4])
    return h.rejects(t, o, () => queue(o), pattern)
  }
  const bad = h.operand([0, 2, 5], undefined, 'int32').tensor
  await refused((o) => h.ops.attention(o, null, q, k, k, bad, end, plan, 1), /rows\[2\] is 5/)
  const other = h.garbage([h.device.attentionPlanSize(5, 5)], 'int32')
  h.ops.attention_plan(other, null, end, 5)
  await refused((o) => h.ops.attention(o, null, q, k, k, rows, end, other, 1), /plan was made for 5 queries and 5 keys/)
  await refused((o) => h.ops.attention(o, null, q, k, h.zeros([5, 1, 3]), rows, end, plan, 1), /v /)
  await refused((o) => h.ops.attention(o, null, q, h.zeros([5, 3, 4]), h.zeros([5, 3, 4]), rows, end, plan, 1), /heads/)
  const tooMany = h.garbage([h.device.attentionPlanSize(3, 5)], 'int32')
  await h.rejects(t, tooMany, () => h.ops.attention_plan(tooMany, bad, end, 3), /rows\[2\] is 5/)
  const past = h.operand([5, 5, 6, 5, 5], undefined, 'int32').tensor
  const another = h.garbage([h.device.attentionPlanSize(3, 5)], 'int32')
  await h.rejects(t, another, () => h.ops.attention_plan(another, rows, past, 3), /end\[2\] is 6/)
})
