import t from 'tap'
import { inverseFrequencies } from '../../../lib/nn/index.js'

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
})
