import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { architectureOf, architectures } from '../../../lib/models/index.js'
import { Device } from '../../../lib/tensor/device.js'
import { allLogits, createNetwork, disposeNetwork } from '../../support/network.js'

const tiny = { vocab_size: 11, n_embd: 8, n_layer: 2, n_head: 2, n_positions: 16 }

t.test('architectures by model_type', async (t) => {
  for (const type of ['llama', 'mistral', 'qwen2', 'gpt2']) t.ok(architectures.has(type), type)
  t.throws(() => architectureOf({ model_type: 'mamba' }), {
    code: 'ERR_UNSUPPORTED_ARCHITECTURE',
    message: /"mamba".*llama, mistral, qwen2, gpt2/,
  })
  t.throws(() => architectureOf({}), { code: 'ERR_UNSUPPORTED_ARCHITECTURE', message: /without model_type/ })
})

t.test('GPT-2 config and names', async (t) => {
  const { parseConfig, fileNames } = architectureOf({ model_type: 'gpt2' })
  t.match(parseConfig({ model_type: 'gpt2', ...tiny, n_inner: null }), { innerSize: 32, headDim: 4, tieWordEmbeddings: true })
  t.throws(() => parseConfig({ model_type: 'gpt2', activation_function: 'tanh' }), {
    code: 'ERR_UNSUPPORTED_ARCHITECTURE',
    message: /"tanh".*gelu_new/,
  })
  t.throws(() => parseConfig({ model_type: 'gpt2', scale_attn_by_inverse_layer_idx: true }), {
    code: 'ERR_UNSUPPORTED_ARCHITECTURE',
  })
  t.same(fileNames('transformer.h.0.ln_1.weight'), ['transformer.h.0.ln_1.weight', 'h.0.ln_1.weight'])
})

t.test('new weights depend on the seed and their name alone', async (t) => {
  const device = await Device.open('cpu')
  const [a, b, deeper, other] = [
    createNetwork(device, { model_type: 'gpt2', ...tiny }, { seed: 4 }),
    createNetwork(device, { model_type: 'gpt2', ...tiny }, { seed: 4 }),
    createNetwork(device, { model_type: 'gpt2', ...tiny, n_layer: 3 }, { seed: 4 }),
    createNetwork(device, { model_type: 'gpt2', ...tiny }, { seed: 5 }),
  ] as const
  const batch = Batch.pack([{ inputIds: [1, 2, 3] }])
  t.same(await allLogits(a, batch), await allLogits(b, batch))
  t.notSame(await allLogits(a, batch), await allLogits(other, batch))
  const of = (network: typeof a, name: string) => network.parameters.get(name)!.data()
  t.same(await of(a, 'transformer.h.1.mlp.c_fc.weight'), await of(deeper, 'transformer.h.1.mlp.c_fc.weight'))
  const weight = await of(a, 'transformer.h.0.mlp.c_fc.weight')
  const deviation = Math.sqrt(weight.reduce((sum, x) => sum + x * x, 0) / weight.length)
  t.ok(Math.abs(deviation - 0.02) < 0.004, String(deviation))
  t.same([...(await of(a, 'transformer.ln_f.weight'))], Array(8).fill(1))
  t.same([...(await of(a, 'transformer.h.0.attn.c_attn.bias'))], Array(24).fill(0))
  for (const network of [a, b, deeper, other]) disposeNetwork(network)
})
