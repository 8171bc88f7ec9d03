import t from 'tap'
import { backward, Tape } from '../../../lib/autograd/index.js'
import { kept, Recipe, type SavedTensor } from '../../../lib/autograd/saved.js'
import { Batch } from '../../../lib/data/batch.js'
import { LoraAdapter } from '../../../lib/peft/lora.js'
import { Device } from '../../../lib/tensor/device.js'
import { keep, scope } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'
import { createNetwork, disposeNetwork, meanLoss } from '../../support/network.js'
import { countOperations } from '../../support/operations.js'

const device = await Device.open(process.env.QUANTUNE_TEST_DEVICE ?? 'cpu')

/** Keeps every tensor that a backward function reads, as if nothing could be computed again. */
class KeepingTape extends Tape {
  override save(x: Tensor): SavedTensor {
    return kept(x)
  }
}

t.test('a recipe is followed once for all its readers, and its copy is gone after the last', async (t) => {
  let computed = 0
  const recipe = new Recipe(() => {
    computed++
    return Tensor.from(device, [1, 2])
  })
  const [a, b, unused] = [recipe.reader(), recipe.reader(), recipe.reader()]
  t.equal(computed, 0)
  const copy = scope(() => a.get())
  t.notOk(copy.disposed, 'beyond the scope of the backward function that asked first')
  a.dispose()
  t.equal(b.get(), copy)
  b.dispose()
  t.notOk(copy.disposed)
  unused.dispose()
  t.ok(copy.disposed)
  t.equal(computed, 1)
})

const [H, I, LAYERS] = [24, 40, 4]
const llama = {
  model_type: 'llama',
  vocab_size: 50,
  max_position_embeddings: 64,
  initializer_range: 0.2,
  hidden_size: H,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: I,
  num_hidden_layers: LAYERS,
}
const gpt2 = { model_type: 'gpt2', vocab_size: 50, n_positions: 64, initializer_range: 0.2, n_embd: H, n_head: 4, n_inner: I }
const configs = { llama, gpt2: { ...gpt2, n_layer: LAYERS } }

/** Five questions on one context, and a sample by itself. */
const context = Array.from({ length: 24 }, (_, i) => (i * 7) % 29)
const sequences = [30, 31, 32, 33, 34].map((question) => {
  const inputIds = [...context, question, 40, 41]
  return { inputIds, labels: inputIds.map((id, i) => (i > 24 ? id : -100)) }
})
sequences.push({ inputIds: [3, 4, 5, 6], labels: [-100, 4, 5, 6] })
const batch = Batch.pack(sequences)
const T = batch.inputIds.length

interface Step {
  loss: number
  gradients: (Float32Array | null)[]
  /** Most bytes of activations in use at once, beyond those before. */
  peak: number
  /** Bytes in use that were not before. */
  left: number
}

interface Variant {
  dropout?: number
  gradientCheckpointing?: boolean
  trainable?: boolean
}

/** A pass with a tape of each kind; the first pass, which makes the buffers of the gradients, is not measured. */
async function compare(config: Record<string, unknown>, { dropout = 0, ...variant }: Variant) {
  const network = createNetwork(device, config, { trainable: variant.trainable ?? false })
  const lora = { targetModules: 'all-linear', initLoraWeights: false, r: 4, seed: 3, loraDropout: dropout } as const
  const adapter = LoraAdapter.create('a', lora, network)
  const dropoutRng = dropout > 0 ? keep(Tensor.from(device, Int32Array.of(1, 2, 3, 4))) : null
  const parameters = [...network.parameters.values(), ...adapter.parameters().values()]
  const pass = async (tape: Tape): Promise<Step> => {
    await device.settled()
    const before = device.memoryUsage().current
    device.resetPeak()
    const { gradientCheckpointing = false } = variant
    const loss = meanLoss(network, batch, tape, { adapter, dropoutRng, gradientCheckpointing })
    backward(loss)
    const value = await loss.item()
    loss.dispose()
    await device.settled()
    const { current, peak } = device.memoryUsage()
    const gradients = await Promise.all(parameters.map((parameter) => parameter.grad()))
    for (const parameter of parameters) parameter.zeroGrad()
    return { loss: value, gradients, peak: peak.activations - before.activations, left: current.total - before.total }
  }
  await pass(new Tape())
  const all = await pass(new KeepingTape())
  let again!: Step
  const calls = await countOperations(device, ['rms_norm', 'swiglu', 'layer_norm', 'activation'], async () => {
    again = await pass(new Tape())
  })
  dropoutRng?.dispose()
  adapter.dispose()
  disposeNetwork(network)
  return { all, again, calls }
}

const variants: Record<string, Variant> = {
  adapter: {},
  'adapter with dropout': { dropout: 0.3 },
  'adapter with checkpointing': { gradientCheckpointing: true },
  'adapter with dropout and checkpointing': { dropout: 0.3, gradientCheckpointing: true },
  'adapter and base': { trainable: true },
}
for (const [architecture, config] of Object.entries(configs)) {
  for (const [name, variant] of Object.entries(variants)) {
    t.test(`${architecture}, ${name}: the gradients are those of a pass that keeps all, bit for bit`, async (t) => {
      const { all, again } = await compare(config, variant)
      t.equal(again.loss, all.loss)
      t.same(again.gradients, all.gradients)
      t.ok(again.gradients.some((gradient) => gradient?.some((g) => g !== 0)))
      t.equal(all.left, 0)
      t.equal(again.left, 0)
    })
  }
}

t.test('what norms and activations give is not kept, and each is computed again once', async (t) => {
  // The outputs of two norms and of the activation; the last layer, of labelled rows alone, is left out.
  const spared = 4 * (LAYERS - 1) * T * (2 * H + I)
  // The layer under way has its copies for a moment, and rounding of the layer above differs.
  const atOnce = 4 * T * (2 * H + I)
  for (const [architecture, config] of Object.entries(configs)) {
    const { all, again, calls } = await compare(config, {})
    const less = all.peak - again.peak
    t.ok(less > spared - atOnce && less <= spared + atOnce, `${architecture}: ${less} bytes less, ${spared} expected`)
    const [norms, activations] =
      architecture === 'llama' ? [calls.rms_norm, calls.swiglu] : [calls.layer_norm, calls.activation]
    // Below the first norm nothing is differentiated: its output is kept and its input is not. The last one's is not read again.
    t.equal(norms!.length, 2 * LAYERS + 1 + 2 * LAYERS - 1)
    t.equal(activations!.length, 2 * LAYERS)
  }
})

t.test('the most that a step needs', async (t) => {
  // Kept of a layer: two residual sums, queries and the attention's output, keys and values, gate and up; statistics of two norms
  // and of four heads, and x Aᵀ of seven adapters of rank 4.
  const layer = 4 * T * (2 * H + 2 * H + 2 * (H / 2) + 2 * I + 2 + 4 + 7 * 4)
  // On its way back through the MLP: the activation's output and its gradient, those of gate and up, of the sum and of its norm.
  const underWay = 4 * T * (4 * I + 4 * H)
  const { again } = await compare(llama, {})
  const bound = LAYERS * layer + underWay
  t.ok(again.peak < bound, `${again.peak} bytes, at most ${bound}`)
  const checkpointed = await compare(llama, { gradientCheckpointing: true })
  const inputs = 4 * T * H * LAYERS
  t.ok(checkpointed.again.peak < inputs + layer + underWay, `${checkpointed.again.peak} of ${inputs + layer + underWay}`)
})
