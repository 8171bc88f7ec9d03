import t from 'tap'
import {
  add,
  backward,
  checkpoint,
  linear,
  noGrad,
  Parameter,
  rmsNorm,
  sum,
  Tape,
  withTape,
} from '../../../lib/autograd/index.js'
import { Device } from '../../../lib/tensor/device.js'
import { keep, scope } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'

const device = await Device.open('cpu')
const matrix = (rows: number, columns: number, seed: number) =>
  Tensor.from(
    device,
    Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(seed + i * 1.3)),
    [rows, columns],
  )

interface Weights {
  up: Parameter
  down: Parameter
  norm: Parameter
}

function weights(): Weights {
  const parameter = (name: string, tensor: Tensor) => new Parameter(name, tensor, { requiresGrad: true })
  return {
    up: parameter('up', matrix(5, 4, 1)),
    down: parameter('down', matrix(4, 5, 2)),
    norm: parameter('norm', keep(Tensor.from(device, [1, 1.1, 0.9, 1.2]))),
  }
}

const plain = (weight: Parameter) => ({ weight, bias: null, transposed: false, lora: null })

/** A residual block whose input has two consumers. */
const block = ({ up, down, norm }: Weights) => {
  return (x: Tensor) => add(x, linear(linear(rmsNorm(x, norm, 1e-5), plain(up)), plain(down)))
}

async function gradientsOf({ up, down, norm }: Weights): Promise<(Float32Array | null)[]> {
  return Promise.all([up, down, norm].map((parameter) => parameter.grad()))
}

const dispose = (w: Weights) => {
  for (const parameter of Object.values(w) as Parameter[]) parameter.dispose()
}

t.test('recomputing gives the same gradients, bit for bit, through several blocks', async (t) => {
  const results = []
  for (const recompute of [false, true]) {
    const w = weights()
    const loss = withTape(new Tape(), () =>
      scope(() => {
        let x = linear(matrix(3, 5, 3), plain(w.down))
        for (let i = 0; i < 3; i++) x = recompute ? checkpoint(block(w), [x]) : scope(() => block(w)(x))
        return sum(x, 0.5)
      }),
    )
    backward(loss, 2)
    results.push(await gradientsOf(w))
    loss.dispose()
    dispose(w)
  }
  t.same(results[0], results[1])
  t.ok(results[0]!.every((gradient) => gradient?.some((g) => g !== 0)))
})

t.test('gradients accumulate over passes and are scaled', async (t) => {
  const w = weights()
  const x = matrix(3, 4, 5)
  const pass = (scale: number) => {
    const loss = withTape(new Tape(), () => scope(() => sum(block(w)(x))))
    backward(loss, scale)
    loss.dispose()
  }
  pass(1)
  const once = await gradientsOf(w)
  pass(2)
  const thrice = await gradientsOf(w)
  for (const [i, gradient] of once.entries()) {
    const error = Math.max(...gradient!.map((g, j) => Math.abs(3 * g - thrice[i]![j]!)))
    t.ok(error < 1e-4, String(error))
  }
  for (const parameter of Object.values(w) as Parameter[]) parameter.zeroGrad()
  t.ok((await gradientsOf(w)).every((gradient) => gradient!.every((g) => g === 0)))
  x.dispose()
  dispose(w)
})

t.test('a pass leaves nothing behind', async (t) => {
  const w = weights()
  const x = keep(matrix(3, 4, 5))
  const pass = () => {
    const loss = withTape(new Tape(), () => scope(() => sum(checkpoint(block(w), [block(w)(x)]))))
    backward(loss)
    loss.dispose()
  }
  pass()
  await device.settled()
  const before = device.memoryUsage().current
  for (let i = 0; i < 20; i++) pass()
  const abandoned = new Tape()
  withTape(abandoned, () => scope(() => sum(block(w)(x)))).dispose()
  abandoned.dispose()
  await device.settled()
  t.same(device.memoryUsage().current, before)
  x.dispose()
  dispose(w)
})

t.test('no gradient flows where nothing is trainable', async (t) => {
  const w = weights()
  for (const parameter of Object.values(w) as Parameter[]) parameter.requiresGrad = false
  const x = matrix(3, 4, 5)
  const loss = withTape(new Tape(), () => scope(() => sum(block(w)(x))))
  t.throws(() => backward(loss), { code: 'ERR_INVALID_ARGUMENT', message: /trainable/ })
  loss.dispose()
  w.down.requiresGrad = true
  const tape = new Tape()
  const deep = withTape(tape, () => {
    const below = rmsNorm(x, w.norm, 1e-5)
    t.notOk(tape.tracks(below), 'below the lowest trainable parameter')
    return sum(linear(linear(below, plain(w.up)), plain(w.down)))
  })
  backward(deep)
  t.ok(await w.down.grad())
  t.equal(await w.up.grad(), null)
  x.dispose()
  dispose(w)
})

t.test('misuse is refused', async (t) => {
  const w = weights()
  const x = matrix(3, 4, 5)
  const make = () => withTape(new Tape(), () => scope(() => sum(block(w)(x))))
  const loss = make()
  backward(loss)
  t.throws(() => backward(loss), { code: 'ERR_INVALID_ARGUMENT' })
  const outside = noGrad(() => sum(block(w)(x)))
  t.throws(() => backward(outside), { code: 'ERR_INVALID_ARGUMENT' })
  t.throws(() => linear(matrix(2, 3, 1), plain(w.up)), { code: 'ERR_INVALID_ARGUMENT', message: /up.*\[2, 3\]/ })
  const codes = new Parameter('codes', Tensor.from(device, Int32Array.of(1, 2)))
  t.throws(() => {
    codes.requiresGrad = true
  }, /codes is int32/)
  loss.dispose()
  outside.dispose()
  x.dispose()
  dispose(w)
})
