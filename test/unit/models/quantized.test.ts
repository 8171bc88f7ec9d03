import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import type { CausalLM } from '../../../lib/models/index.js'
import { LoraAdapter } from '../../../lib/peft/lora.js'
import { keep, scope } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'
import { deviceOf, disposeNetwork, referenceNetwork, trainingPass } from '../../support/network.js'

/** Quantizes every linear layer but the head; or puts in its place what its 4-bit form stands for. */
function quantizeNetwork(network: CausalLM, type: 'nf4' | 'fp4', dense: boolean): void {
  const { ops } = deviceOf(network)
  for (const [name, { weight }] of network.linearLayers) {
    if (name === network.headName) continue
    const { device, shape } = weight.value
    const replacement = scope(() => {
      const quantized = Tensor.emptyQuantized(device, shape, { type, blockSize: 64, doubleQuant: true })
      ops.quantize(quantized, weight.value)
      if (!dense) return keep(quantized)
      const values = Tensor.empty(device, shape, 'float32', 'weights')
      ops.dequantize(values, quantized)
      return keep(values)
    })
    weight.exchange(replacement).dispose()
  }
}

const batch = Batch.pack([
  { inputIds: [5, 17, 9, 200, 31, 8], labels: [-100, -100, -100, 200, 31, 8] },
  { inputIds: [5, 17, 101, 3], labels: [-100, -100, 101, 3] },
])

for (const name of ['llama', 'gpt2']) {
  for (const type of ['nf4', 'fp4'] as const) {
    t.test(`LoRA on ${name} in ${type} learns as on the dequantized weights`, async (t) => {
      const results = []
      for (const dense of [true, false]) {
        const network = await referenceNetwork(name)
        quantizeNetwork(network, type, dense)
        const adapter = LoraAdapter.create('a', { targetModules: 'all-linear', initLoraWeights: false, r: 4 }, network)
        const loss = await trainingPass(network, batch, { adapter })
        const gradients = await Promise.all([...adapter.parameters().values()].map((parameter) => parameter.grad()))
        results.push({ loss, gradients })
        adapter.dispose()
        disposeNetwork(network)
      }
      const [dense, quantized] = results
      t.ok(Math.abs(dense!.loss - quantized!.loss) < 2e-5 * dense!.loss, `${dense!.loss} ${quantized!.loss}`)
      for (const [i, gradient] of dense!.gradients.entries()) {
        const scale = Math.max(...gradient!.map(Math.abs))
        const worst = Math.max(...gradient!.map((g, j) => Math.abs(g - quantized!.gradients[i]![j]!)))
        t.ok(worst < 1e-4 * scale, String(worst / scale))
      }
    })
  }
}
