import t from 'tap'
import { inverseFrequencies, RopeTables } from '../../../lib/nn/index.js'
import { Device, Tensor } from '../../../lib/tensor/index.js'

/** From transformers' LlamaRotaryEmbedding (5.18); its power function may be off by one unit in the last place, which interpolation doubles. */
t.test('frequencies are those of transformers', async (t) => {
  const close = (actual: Float32Array, expected: number[], message: string) => {
    t.equal(actual.length, expected.length)
    for (const [i, value] of expected.entries()) t.ok(Math.abs(actual[i]! / value - 1) < 4e-7, `${message} ${i}: ${actual[i]}`)
  }
  const llama3 = { factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositionEmbeddings: 64 }
  close(
    inverseFrequencies({ type: 'llama3', theta: 5e5, ...llama3 }, 16),
    [
      1.0, 0.07940301299095154, 0.004700753837823868, 0.0009115831344388425, 0.00017677668074611574, 3.428102354519069e-5,
      6.647869668086059e-6, 1.289173155782919e-6,
    ],
    'llama3',
  )
  close(
    inverseFrequencies({ type: 'linear', theta: 1e4, factor: 4 }, 12),
    [0.25, 0.0538608618080616, 0.011603971011936665, 0.0024999999441206455, 0.0005386085831560194, 0.00011603973689489067],
    'linear',
  )
  close(
    inverseFrequencies({ type: 'default', theta: 1e5 }, 64).subarray(0, 6),
    [1.0, 0.6978305578231812, 0.486967533826828, 0.33982083201408386, 0.23713736236095428, 0.16548170149326324],
    'default',
  )
  const yarn = { type: 'yarn', betaFast: 32, betaSlow: 1, attentionFactor: 1, truncate: true } as const
  close(
    inverseFrequencies({ ...yarn, theta: 1e4, factor: 4, originalMaxPositionEmbeddings: 64 }, 16),
    [
      1.0, 0.23717081546783447, 0.04999999701976776, 0.007905694656074047, 0.0024999999441206455, 0.0007905694656074047,
      0.0002500000118743628, 7.905694656074047e-5,
    ],
    'yarn',
  )
  const untruncated = { ...yarn, betaFast: 16, betaSlow: 2, truncate: false }
  close(
    inverseFrequencies({ ...untruncated, theta: 5e5, factor: 40, originalMaxPositionEmbeddings: 4096 }, 16),
    [
      1.0, 0.193922758102417, 0.03760603070259094, 0.0031429838854819536, 3.535533687681891e-5, 6.856204436189728e-6,
      1.3295739336172119e-6, 2.578346141035581e-7,
    ],
    'yarn over a range that ends within dimensions',
  )
})

t.test("yarn's attention factor multiplies cosines and sines", async (t) => {
  const device = await Device.open('cpu')
  const rope = {
    type: 'yarn',
    theta: 100,
    factor: 2,
    betaFast: 32,
    betaSlow: 1,
    attentionFactor: 1.5,
    truncate: true,
    originalMaxPositionEmbeddings: 32,
  } as const
  const table = new RopeTables(rope, 4).at(Tensor.from(device, Int32Array.of(0, 3)))
  const values = await table.data()
  const [first, second] = inverseFrequencies(rope, 4) as unknown as [number, number]
  const expected = [1.5, 1.5, 0, 0, Math.cos(3 * first), Math.cos(3 * second), Math.sin(3 * first), Math.sin(3 * second)]
  for (const [i, value] of expected.entries()) t.ok(Math.abs(values[i]! - (i < 4 ? value : 1.5 * value)) < 1e-6)
})
