import t from 'tap'
import type { Parameter } from '../../../lib/autograd/index.js'
import { Batch } from '../../../lib/data/batch.js'
import type { CausalLM } from '../../../lib/models/index.js'
import { LoraAdapter } from '../../../lib/peft/lora.js'
import { createTokenRows } from '../../../lib/peft/token-rows.js'
import { TokensAdapter } from '../../../lib/peft/tokens.js'
import { Device } from '../../../lib/tensor/device.js'
import { createNetwork, disposeNetwork, lossOf, trainingPass } from '../../support/network.js'

const LLAMA = {
  model_type: 'llama',
  vocab_size: 37,
  hidden_size: 24,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 64,
  attention_bias: true,
  mlp_bias: true,
  initializer_range: 0.3,
}
const GPT2 = { model_type: 'gpt2', vocab_size: 37, n_embd: 24, n_layer: 2, n_head: 3, n_positions: 64, initializer_range: 0.3 }

/** Two samples that share a prefix with a label inside it, and a token that nothing attends to. */
const shared = Batch.pack(
  [
    { inputIds: [3, 9, 4, 1, 30, 7, 7, 2], labels: [-100, -100, 4, -100, 30, 7, -100, 2] },
    { inputIds: [3, 9, 4, 1, 12, 36, 5], labels: [-100, -100, 4, -100, -100, 36, 5] },
  ],
  { notAttended: [1] },
)

/** The largest relative error of gᵀd against the loss's change along d, for d along the gradient and along a random direction. */
async function worstError(
  network: CausalLM,
  parameters: Iterable<Parameter>,
  options = {},
  batch: Batch = shared,
): Promise<{ name: string; error: number }> {
  await trainingPass(network, batch, options)
  let worst = { name: 'none', error: 0 }
  for (const parameter of parameters) {
    const gradient = await parameter.grad()
    if (!gradient) return { name: parameter.name, error: Number.POSITIVE_INFINITY }
    const start = await parameter.data()
    const norm = Math.hypot(...gradient)
    let state = 12345
    const noise = () => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0
      return state / 2 ** 31 - 1
    }
    const along = gradient.map((g) => g / norm)
    const random = gradient.map((_, i) => along[i]! * 0.5 + noise() / Math.sqrt(gradient.length))
    for (const direction of [along, random]) {
      const expected = gradient.reduce((total, g, i) => total + g * direction[i]!, 0)
      // A step that changes the loss by about 4e-3: far above float32's resolution, small enough for a straight line.
      const step = Math.min(2e-2, 4e-3 / Math.abs(expected))
      const at = async (factor: number) => {
        parameter.value.write(start.map((value, i) => value + factor * direction[i]!))
        return lossOf(network, batch, options)
      }
      const measured = ((await at(step)) - (await at(-step))) / (2 * step)
      parameter.value.write(start)
      const error = Math.abs(measured - expected) / (Math.abs(expected) + 1e-3)
      if (!(error <= worst.error)) worst = { name: parameter.name, error }
    }
  }
  return worst
}

for (const [name, config] of Object.entries({
  llama: LLAMA,
  'llama with a tied head': { ...LLAMA, tie_word_embeddings: true },
  gpt2: GPT2,
})) {
  t.test(`gradients of all parameters of ${name} are those of the loss`, async (t) => {
    const network = createNetwork(await Device.open('cpu'), config, { trainable: true })
    // Norms of exactly 1 and biases of 0 would hide factors that are left out.
    for (const [index, parameter] of [...network.parameters.values()].entries()) {
      if (parameter.shape.length === 1) parameter.value.write(await perturbed(parameter, index))
    }
    const { name: parameter, error } = await worstError(network, network.parameters.values())
    t.ok(error < 0.003, `${parameter}: ${error}`)
    disposeNetwork(network)
  })
}

t.test('gradients of LoRA on every linear layer, head included, are those of the loss', async (t) => {
  for (const config of [LLAMA, GPT2]) {
    const network = createNetwork(await Device.open('cpu'), config)
    const adapter = LoraAdapter.create('default', { r: 3, loraAlpha: 6, targetModules: /.*/, initLoraWeights: false }, network)
    const { name, error } = await worstError(network, adapter.parameters().values(), { adapter })
    t.ok(error < 0.003, `${name}: ${error}`)
    t.ok(
      [...network.parameters.values()].every((parameter) => parameter.gradient === null),
      'the base gets no gradients',
    )
    adapter.dispose()
    disposeNetwork(network)
  }
})

/** Token 5 has a row in the place of the base's, 37 and 40 beyond the vocabulary; 38 and 39 cannot come. */
t.test('gradients of rows of tokens in embedding and head are those of the loss', async (t) => {
  const tokens = Batch.fromPadded({ inputIds: [[3, 37, 5, 1, 40, 37, 9]], labels: [[-100, 37, 5, -100, 40, 37, 9]] })
  for (const tied of [true, false]) {
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const network = createNetwork(await Device.open('cpu'), { ...LLAMA, tie_word_embeddings: tied }, { dtype })
      const values = Float32Array.from({ length: 4 * 24 }, (_, i) => 0.4 * Math.sin(5 * i))
      const rows = createTokenRows(network, [11, 37, 5, 40], { values, predictable: [5, 40, 37] })
      const adapter = new TokensAdapter('tokens', rows)
      if (!tied) rows.head!.rows.value.write(values.subarray(0, 3 * 24))
      t.equal(adapter.parameters().size, tied ? 1 : 2)
      if (dtype === 'float32') {
        const { name, error } = await worstError(network, adapter.parameters().values(), { adapter }, tokens)
        t.ok(error < 0.003, `tied ${tied}, ${name}: ${error}`)
      } else {
        await trainingPass(network, tokens, { adapter })
        for (const parameter of adapter.parameters().values()) t.ok((await parameter.grad())!.every(Number.isFinite))
      }
      adapter.dispose()
      disposeNetwork(network)
    }
  }
})

async function perturbed(parameter: Parameter, index: number): Promise<Float32Array> {
  return (await parameter.data()).map((value, i) => value + 0.2 * Math.sin(1 + i * 1.7 + index))
}
