import { readFileSync } from 'node:fs'
import t from 'tap'
import { Parameter } from '../../../lib/autograd/index.js'
import { Device, Tensor } from '../../../lib/tensor/index.js'
import { AdamW } from '../../../lib/training/optimizer.js'

interface Reference {
  init: [number[], number[]]
  steps: { lr: number; grads: (number[] | null)[]; norm: number; params: number[][] }[]
}

const reference: Reference = JSON.parse(readFileSync('test/fixtures/training/adamw.json', 'utf8'))
const shapes = [[3, 5], [7]]
const device = await Device.open('cpu')

function makeParameters() {
  return shapes.map((shape, i) => {
    return new Parameter(`p${i}`, Tensor.from(device, reference.init[i]!, shape), { requiresGrad: true })
  })
}

function setGradients(parameters: Parameter[], step: number) {
  for (const [i, parameter] of parameters.entries()) {
    const gradient = reference.steps[step]!.grads[i]
    if (gradient) parameter.gradientBuffer().write(Float32Array.from(gradient))
    else parameter.dropGradient()
  }
}

const worst = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a, (value, i) => Math.abs(value - b[i]!)).reduce((x, y) => Math.max(x, y), 0)

const options = { betas: [0.8, 0.95], eps: 1e-6, weightDecay: 0.1, maxGradNorm: 0.7 } as const
const groupsOf = ([first, second]: Parameter[]) => [first!, { parameters: [second!], weightDecay: 0 }]

t.test('steps, decay groups, clipping and a missing gradient are as in PyTorch, and a state continues exactly', async (t) => {
  const parameters = makeParameters()
  let optimizer = new AdamW(groupsOf(parameters), options)
  for (const [step, { lr, norm, params }] of reference.steps.entries()) {
    if (step === 3) {
      const next = new AdamW(groupsOf(parameters), options)
      await next.loadStateDict(optimizer.stateDict())
      optimizer.dispose()
      optimizer = next
    }
    setGradients(parameters, step)
    optimizer.learningRate = lr
    await optimizer.step()
    t.ok(Math.abs((await optimizer.gradNorm.item()) - norm) < 1e-6 * norm)
    for (const [i, parameter] of parameters.entries()) {
      const off = worst(await parameter.data(), params[i]!)
      t.ok(off < 1e-6, `step ${step}, parameter ${i}: off by ${off}`)
    }
  }
  optimizer.zeroGrad()
  t.same([...(await parameters[1]!.grad())!], new Array(7).fill(0))
  t.same(optimizer.stateDict().steps, { p0: 5, p1: 4 })
})

t.test('a norm that is not finite changes nothing and is reported', async (t) => {
  const parameters = makeParameters()
  const optimizer = new AdamW(parameters, options)
  setGradients(parameters, 0)
  parameters[1]!.gradientBuffer().write(Float32Array.from({ length: 7 }, () => Number.NaN))
  await optimizer.step()
  t.same(await parameters[0]!.data(), Float32Array.from(reference.init[0]))
  await t.rejects(optimizer.assertFinite(), { code: 'ERR_NOT_FINITE' })
})

t.test('what cannot be is refused', async (t) => {
  const parameters = makeParameters()
  const frozen = new Parameter('frozen', Tensor.zeros(device, [2]))
  t.throws(() => new AdamW([]), { code: 'ERR_INVALID_ARGUMENT', message: /at least one/ })
  t.throws(() => new AdamW([frozen]), { message: /frozen is frozen/ })
  t.throws(() => new AdamW([parameters[0]!, parameters[0]!]), { message: /p0 is given twice/ })
  t.throws(() => new AdamW(parameters, { learning_rate: 1 } as object), { message: /did you mean "learningRate"/ })
  const optimizer = new AdamW(parameters)
  await t.rejects(optimizer.step(), { message: /call backward first/ })
  const other = new AdamW([parameters[0]!])
  await t.rejects(optimizer.loadStateDict(other.stateDict()), {
    message: /expected "p1.exp_avg" with shape \[7\], found nothing/,
  })
  optimizer.dispose()
  await t.rejects(optimizer.step(), { code: 'ERR_DISPOSED' })
  t.throws(() => optimizer.zeroGrad(), { code: 'ERR_DISPOSED' })
})
