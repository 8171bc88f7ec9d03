import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { llama } from '../../../lib/models/llama.js'
import { LoraAdapter } from '../../../lib/peft/lora.js'
import { Tensor } from '../../../lib/tensor/tensor.js'
import { allLogits, deviceOf, disposeNetwork, lossOf, referenceNetwork, trainingPass } from '../../support/network.js'

const smollm2 = {
  model_type: 'llama',
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  vocab_size: 49152,
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100000,
  rope_scaling: null,
  tie_word_embeddings: true,
  hidden_act: 'silu',
}

t.test('config.json', async (t) => {
  t.match(llama.parseConfig(smollm2), {
    headDim: 64,
    rope: { type: 'default', theta: 100000 },
    tieWordEmbeddings: true,
    qkvBias: false,
    maxPositionEmbeddings: 8192,
  })
  const llama3 = { factor: 32, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 }
  const expected = { type: 'llama3', theta: 5e5, factor: 32, originalMaxPositionEmbeddings: 8192 }
  const before5 = { ...smollm2, rope_theta: 5e5, rope_scaling: { ...llama3, rope_type: 'llama3' } }
  t.match(llama.parseConfig(before5).rope, expected, 'transformers 4')
  const since5 = { ...smollm2, rope_theta: undefined, rope_parameters: { ...llama3, rope_theta: 5e5, rope_type: 'llama3' } }
  t.match(llama.parseConfig(since5).rope, expected, 'transformers 5')

  // The attention factors are those of transformers' LlamaRotaryEmbedding.
  const yarn = { rope_type: 'yarn', factor: 40, original_max_position_embeddings: 4096 }
  const yarnOf = (change: object) => llama.parseConfig({ ...smollm2, rope_scaling: { ...yarn, ...change } }).rope
  const defaults = { type: 'yarn', theta: 1e5, factor: 40, betaFast: 32, betaSlow: 1, truncate: true }
  t.match(yarnOf({}), { ...defaults, originalMaxPositionEmbeddings: 4096 })
  t.match(yarnOf({ original_max_position_embeddings: undefined }), { originalMaxPositionEmbeddings: 8192 })
  t.match(yarnOf({ mscale: 1, mscale_all_dim: 0.5, beta_fast: 16 }), { betaFast: 16, attentionFactor: 1.1557219901962608 })
  t.match(yarnOf({ factor: 4 }), { attentionFactor: 1.138629436111989 })
  t.match(yarnOf({ attention_factor: 1.5 }), { attentionFactor: 1.5 })

  t.match(llama.parseConfig({ ...smollm2, model_type: 'qwen2', sliding_window: 32 }), { qkvBias: true, outputBias: false })
  t.equal(llama.parseConfig({ ...smollm2, model_type: 'qwen2', sliding_window: 32 }).maxPositionEmbeddings, 8192)
  t.equal(llama.parseConfig({ ...smollm2, model_type: 'mistral', sliding_window: 4096 }).maxPositionEmbeddings, 4096)
  t.match(llama.parseConfig({ ...smollm2, attention_bias: true, mlp_bias: true }), {
    qkvBias: true,
    outputBias: true,
    mlpBias: true,
  })
})

t.test('what is not supported is refused by name', async (t) => {
  const refused = (change: object, message: RegExp) =>
    t.throws(() => llama.parseConfig({ ...smollm2, ...change }), { code: 'ERR_UNSUPPORTED_ARCHITECTURE', message })
  refused({ rope_scaling: { rope_type: 'longrope', factor: 4 } }, /rope type "longrope".*default, linear, llama3, yarn/)
  refused({ rope_scaling: { type: 'dynamic', factor: 4 } }, /rope type "dynamic"/)
  refused({ hidden_act: 'gelu' }, /hidden_act "gelu".*silu/)
  refused({ num_attention_heads: 10, head_dim: 64 }, /num_key_value_heads 3/)
  refused({ partial_rotary_factor: 0.5 }, /partial_rotary_factor/)
  t.throws(() => llama.parseConfig({ ...smollm2, hidden_size: '576' }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /"hidden_size".*"576"/,
  })
  t.throws(() => llama.parseConfig({ ...smollm2, vocab_size: undefined }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /"vocab_size"/,
  })
})

const samples = [
  { inputIds: [5, 17, 9, 200, 31, 8], labels: [-100, -100, -100, 200, 31, 8] },
  { inputIds: [5, 17, 9, 44, 6, 6, 90], labels: [-100, -100, -100, -100, 6, 6, 90] },
  { inputIds: [5, 17, 101, 3], labels: [-100, -100, 101, 3] },
]

const worst = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((m, x, i) => Math.max(m, Math.abs(x - b[i]!)), 0)

t.test('a shared prefix changes neither the loss nor the gradients', async (t) => {
  const network = await referenceNetwork('llama')
  const adapter = LoraAdapter.create('a', { targetModules: 'all-linear', initLoraWeights: false, r: 4 }, network)
  const results = []
  for (const sharePrefixes of [false, true]) {
    const batch = Batch.pack(samples, { sharePrefixes })
    t.equal(batch.numTokens, sharePrefixes ? 12 : 17)
    const loss = await trainingPass(network, batch, { adapter })
    const gradients = await Promise.all([...adapter.parameters().values()].map((parameter) => parameter.grad()))
    for (const parameter of adapter.parameters().values()) parameter.zeroGrad()
    results.push({ loss, gradients })
  }
  const [apart, shared] = results
  t.ok(Math.abs(apart!.loss - shared!.loss) < 1e-5)
  for (const [i, gradient] of apart!.gradients.entries()) t.ok(worst(gradient!, shared!.gradients[i]!) < 1e-6)
  adapter.dispose()
  disposeNetwork(network)
})

t.test('samples of one stream do not see each other', async (t) => {
  const network = await referenceNetwork('llama')
  const together = Batch.pack(samples, { sharePrefixes: false })
  const packed = await allLogits(network, together)
  for (const [i, sample] of samples.entries()) {
    const alone = await allLogits(network, Batch.pack([sample]))
    const first = together.sampleRows[i]![0]! * 256
    t.ok(worst(alone, packed.subarray(first, first + alone.length)) < 1e-5)
  }
  disposeNetwork(network)
})

t.test('narrowing the last layer to the labelled rows changes nothing', async (t) => {
  for (const name of ['llama', 'gpt2']) {
    const network = await referenceNetwork(name, { trainable: true })
    const batch = Batch.pack(samples)
    const gradients = []
    for (const prune of [true, false]) {
      await trainingPass(network, batch, { prune })
      gradients.push(await Promise.all([...network.parameters.values()].map((parameter) => parameter.grad())))
      for (const parameter of network.parameters.values()) parameter.zeroGrad()
    }
    for (const [i, parameter] of [...network.parameters.values()].entries()) {
      t.ok(worst(gradients[0]![i]!, gradients[1]![i]!) < 1e-5, parameter.name)
    }
    disposeNetwork(network)
  }
})

t.test('dropout is drawn from seed, step, micro-batch and layer alone', async (t) => {
  const network = await referenceNetwork('llama')
  const adapter = LoraAdapter.create('a', { targetModules: 'all-linear', initLoraWeights: false, loraDropout: 0.3 }, network)
  const device = deviceOf(network)
  const batch = Batch.pack(samples)
  const pass = async (rng: number[] | null, gradientCheckpointing = false) => {
    const dropoutRng = rng && Tensor.from(device, Int32Array.from(rng))
    const loss = await trainingPass(network, batch, { adapter, dropoutRng, gradientCheckpointing })
    const gradients = await Promise.all([...adapter.parameters().values()].map((parameter) => parameter.grad()))
    for (const parameter of adapter.parameters().values()) parameter.zeroGrad()
    dropoutRng?.dispose()
    return { loss, gradients }
  }
  const kept = await pass([1, 2, 3, 0])
  t.same(await pass([1, 2, 3, 0], true), kept, 'recomputing draws the same')
  t.not((await pass([1, 2, 4, 0])).loss, kept.loss, 'another step draws others')
  t.not((await pass([1, 2, 3, 1])).loss, kept.loss, 'and another micro-batch')
  t.equal((await pass(null)).loss, await lossOf(network, batch, { adapter }), 'no dropout outside training')
  adapter.dispose()
  disposeNetwork(network)
})

t.test('bfloat16 activations follow float32 ones', async (t) => {
  const batch = Batch.pack(samples)
  const losses = []
  const gradients = []
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const network = await referenceNetwork('llama', { dtype })
    const adapter = LoraAdapter.create('a', { targetModules: 'all-linear', initLoraWeights: false, r: 4, seed: 3 }, network)
    losses.push(await trainingPass(network, batch, { adapter }))
    gradients.push(await adapter.layers.get('model.layers.0.mlp.up_proj')!.a.grad())
    adapter.dispose()
    disposeNetwork(network)
  }
  t.ok(Math.abs(losses[0]! - losses[1]!) < 0.02 * losses[0]!, losses.join(' '))
  const scale = Math.max(...gradients[0]!.map(Math.abs))
  t.ok(worst(gradients[0]!, gradients[1]!) < 0.08 * scale)
})
