import t from 'tap'
import { numericGradient, openHarness, tolerance } from './harness.js'

const h = await openHarness()

/** erf by its series: exact to about 1e-10, which differences of it would magnify. */
function erf(x: number): number {
  if (Math.abs(x) > 5.5) return Math.sign(x)
  let term = x
  let sum = x
  for (let n = 1; n < 200; n++) {
    term *= (-x * x) / n
    sum += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * sum
}

const silu = (x: number) => x / (1 + Math.exp(-x))
const geluSlope = (x: number) => 0.5 * (1 + erf(x / Math.SQRT2)) + (x * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI)
const difference = (f: (x: number) => number) => (x: number) => numericGradient((v) => f(v[0]!), [x])[0]!

const kinds: [string, (x: number) => number, ((x: number) => number)?][] = [
  ['gelu_new', (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))],
  ['gelu', (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)), geluSlope],
  ['silu', silu],
  ['relu', (x) => Math.max(x, 0)],
]
const gradients = { float32: { absolute: 4e-6, relative: 4e-6 }, bfloat16: tolerance.bfloat16 }

for (const dtype of ['float32', 'bfloat16'] as const) {
  kinds.forEach(([name, f, slope = difference(f)], kind) => {
    t.test(`${name} ${dtype}`, async (t) => {
      const extremes = [-100, -20, -6, -1e-3, 1e-3, 3, 30, 88, 100]
      const numbers = [...extremes, ...h.random.normal([500], { scale: 2 }).values]
      const x = h.operand(numbers, undefined, dtype)
      const y = h.garbage([numbers.length], dtype)
      h.ops.activation(y, x.tensor, kind)
      await h.close(t, y, x.values.map(f), tolerance[dtype], 'values')

      const dy = h.random.normal([numbers.length], { dtype })
      const dx = h.garbage([numbers.length], dtype)
      h.ops.activation_backward(dx, dy.tensor, x.tensor, kind)
      const expected = x.values.map((v, i) => slope(v) * dy.values[i]!)
      await h.close(t, dx, expected, gradients[dtype], 'gradients')
      h.ops.activation_backward(dy.tensor, dy.tensor, x.tensor, kind)
      await h.equal(t, dy.tensor, await h.read(dx), 'gradients in place')
      h.ops.activation(x.tensor, x.tensor, kind)
      await h.equal(t, x.tensor, await h.read(y), 'in place')
    })
  })

  t.test(`swiglu ${dtype}`, async (t) => {
    for (const shape of [
      [1, 1],
      [3, 37],
      [33, 1000],
    ]) {
      const [gate, up, dy] = [0, 1, 2].map(() => h.random.normal(shape, { dtype, scale: 2 }))
      const y = h.garbage(shape, dtype)
      h.ops.swiglu(y, gate!.tensor, up!.tensor)
      const expected = gate!.values.map((g, i) => silu(g) * up!.values[i]!)
      await h.close(t, y, expected, tolerance[dtype], `values [${shape}]`)
      const [dGate, dUp] = [h.garbage(shape, dtype), h.garbage(shape, dtype)]
      h.ops.swiglu_backward(dGate, dUp, dy!.tensor, gate!.tensor, up!.tensor)
      const slopes = gate!.values.map((g, i) => difference(silu)(g) * up!.values[i]! * dy!.values[i]!)
      await h.close(
        t,
        dGate,
        slopes,
        { absolute: gradients[dtype].absolute * 4, relative: gradients[dtype].relative },
        'd_gate',
      )
      await h.close(
        t,
        dUp,
        gate!.values.map((g, i) => silu(g) * dy!.values[i]!),
        gradients[dtype],
        'd_up',
      )
      h.ops.swiglu_backward(gate!.tensor, up!.tensor, dy!.tensor, gate!.tensor, up!.tensor)
      await h.equal(t, gate!.tensor, await h.read(dGate), 'd_gate in place')
      await h.equal(t, up!.tensor, await h.read(dUp), 'd_up in place')
    }
  })
}

t.test('NaN and infinity pass through', async (t) => {
  const x = h.operand([Number.NaN, Number.POSITIVE_INFINITY])
  for (const kind of [0, 1, 2]) {
    const y = h.garbage([2])
    h.ops.activation(y, x.tensor, kind)
    await h.equal(t, y, [Number.NaN, Number.POSITIVE_INFINITY], `kind ${kind}`)
  }
})

t.test('refused', async (t) => {
  const y = h.empty([2])
  await h.rejects(t, y, () => h.ops.activation(y, h.zeros([2]), 4), /kind is 4/)
  const z = h.empty([2])
  await h.rejects(t, z, () => h.ops.swiglu(z, h.zeros([2]), h.zeros([3])), /up/)
})
