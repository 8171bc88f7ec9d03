import t from 'tap'
import type { Tensor } from '../../lib/tensor/index.js'
import { type Operand, openHarness } from './harness.js'

const h = await openHarness()
const close = { absolute: 2e-6, relative: 2e-6 }

t.test('grad_norm over many tensors', async (t) => {
  const sizes = [1, 3, 70_000, 0, 129, ...new Array(300).fill(17), 200_001]
  const grads = sizes.map((size) => h.random.normal([size]))
  const norm = h.garbage([1])
  h.ops.grad_norm(
    norm,
    grads.map(({ tensor }) => tensor),
  )
  const squares = grads.reduce((sum, { values }) => sum + values.reduce((s, v) => s + v * v, 0), 0)
  await h.close(t, norm, [Math.sqrt(squares)], { absolute: 0, relative: 1e-7 })
  const first = (await h.read(norm))[0]
  for (let i = 0; i < 3; i++) {
    h.ops.grad_norm(
      norm,
      grads.map(({ tensor }) => tensor),
    )
    t.equal((await h.read(norm))[0], first, 'repeats bit for bit')
  }
  const huge = h.operand([3e25, 4e25])
  h.ops.grad_norm(norm, [huge.tensor])
  await h.close(t, norm, [5e25], { absolute: 0, relative: 1e-6 }, 'squares do not overflow')
  h.ops.grad_norm(norm, [])
  await h.equal(t, norm, [0], 'no gradients')
})

interface Options {
  learningRate: number
  weightDecay: number
  maxNorm: number
}
const beta1 = 0.9
const beta2 = 0.999
const eps = 1e-8

/** torch.optim.AdamW after clip_grad_norm_, in float64. */
function update(state: Record<'p' | 'g' | 'm' | 'v', Float64Array[]>, norm: number, step: number, o: Options): void {
  const clip = o.maxNorm > 0 ? Math.min(1, o.maxNorm / (norm + 1e-6)) : 1
  state.p.forEach((p, n) => {
    const [g, m, v] = [state.g[n]!, state.m[n]!, state.v[n]!]
    for (let i = 0; i < p.length; i++) {
      const gradient = g[i]! * clip
      m[i] = beta1 * m[i]! + (1 - beta1) * gradient
      v[i] = beta2 * v[i]! + (1 - beta2) * gradient ** 2
      const denominator = Math.sqrt(v[i]! / (1 - beta2 ** step)) + eps
      p[i] = p[i]! * (1 - o.learningRate * o.weightDecay) - (o.learningRate * m[i]!) / (1 - beta1 ** step) / denominator
    }
  })
}

const cases: Options[] = [
  { learningRate: 1e-2, weightDecay: 0, maxNorm: 0 },
  { learningRate: 1e-2, weightDecay: 0.1, maxNorm: 1 },
  { learningRate: 3e-3, weightDecay: 0.01, maxNorm: 1e6 },
]
const sizes = [1, 15, 16, 40_000, ...new Array(100).fill(33)]

for (const options of cases) {
  t.test(`adamw ${JSON.stringify(options)}`, async (t) => {
    const { learningRate, weightDecay, maxNorm } = options
    const make = (f: (size: number) => Operand) => sizes.map(f)
    const p = make((size) => h.random.normal([size]))
    const m = make((size) => h.operand(new Float64Array(size)))
    const v = make((size) => h.operand(new Float64Array(size)))
    const values = (list: Operand[]) => list.map((x) => Float64Array.from(x.values))
    const tensors = (list: Operand[]) => list.map((x) => x.tensor)
    const state = { p: values(p), g: [] as Float64Array[], m: values(m), v: values(v) }
    const notFinite = h.operand([0], undefined, 'int32').tensor
    const norm = h.garbage([1])
    for (let step = 1; step <= 4; step++) {
      const g = make((size) => h.random.normal([size], { scale: 0.1 }))
      h.ops.grad_norm(norm, tensors(g))
      h.ops.adamw(
        tensors(p), tensors(g), tensors(m), tensors(v), norm, notFinite,
        learningRate, beta1, beta2, eps, weightDecay, maxNorm, step,
      ) // biome-ignore format: as ops.def lists them
      state.g = values(g)
      update(state, (await h.read(norm))[0]!, step, options)
    }
    for (const n of [0, 1, 2, 3, 4, 103]) {
      await h.close(t, p[n]!.tensor, state.p[n]!, { absolute: 1e-5, relative: 1e-5 }, `parameter ${n}`)
      await h.close(t, m[n]!.tensor, state.m[n]!, close, `first moment ${n}`)
      await h.close(t, v[n]!.tensor, state.v[n]!, close, `second moment ${n}`)
    }
    await h.equal(t, notFinite, [0])
  })
}

t.test('a norm that is not finite changes nothing and raises the flag', async (t) => {
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const [p, g, m, v] = [1, 2, 3, 4].map((x) => h.operand([x, x]))
    const notFinite = h.operand([0], undefined, 'int32').tensor
    const norm = h.operand([bad]).tensor
    h.ops.adamw([p!.tensor], [g!.tensor], [m!.tensor], [v!.tensor], norm, notFinite, 1, beta1, beta2, eps, 0.1, 1, 1)
    await h.equal(t, notFinite, [1])
    for (const x of [p!, m!, v!]) await h.equal(t, x.tensor, x.values, 'unchanged')
  }
})

t.test('refused', async (t) => {
  const make = (size = 2) => h.zeros([size])
  const call = (p = [make()], g = [make()], step = 1) => {
    const notFinite = h.operand([0], undefined, 'int32').tensor
    h.ops.adamw(p, g, [make()], [make()], make(1), notFinite, 1, beta1, beta2, eps, 0, 0, step)
    return notFinite
  }
  const refused = async (flag: Tensor, pattern: RegExp) => h.rejects(t, flag, () => {}, pattern)
  await refused(call([make()], [make()], 0), /step is 0/)
  await refused(call([make()], [make(3)]), /grads/)
  await refused(call([make()], [make(), make()]), /params has 1 tensors, grads 2/)
})
