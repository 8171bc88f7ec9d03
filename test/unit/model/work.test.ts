import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { Model } from '../../../lib/model/model.js'
import type { LoraConfig } from '../../../lib/peft/lora.js'
import { type Calls, countOperations } from '../../support/operations.js'

const [H, I, V, LAYERS, Q, KV] = [24, 40, 50, 4, 24, 12]
const shape = {
  hidden_size: H,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: I,
  num_hidden_layers: LAYERS,
}
const config = { model_type: 'llama', vocab_size: V, max_position_embeddings: 128, ...shape }
const context = Array.from({ length: 20 }, (_, i) => i)
/** Four questions on a context; the answer is two tokens, and the end token is only predicted. */
const samples = [30, 31, 32, 33].map((question) => {
  const inputIds = [...context, question, question, 40, 41, 42]
  return { inputIds, labels: inputIds.map((id, i) => (i >= 22 ? id : -100)) }
})
const batch = Batch.pack(samples)
/** Tokens that anything depends on, and those that predict something. */
const [T, R] = [20 + 4 * 4, 4 * 3]

async function modelWith(adapter: LoraConfig): Promise<Model> {
  const model = await Model.fromConfig(config, { device: 'cpu', dtype: 'float32', seed: 1 })
  model.addAdapter({ ...adapter, initLoraWeights: false })
  return model
}

type Shape = readonly number[]
const product = ([rows]: Shape, [n, k]: Shape) => rows! * n! * k!
/** Multiplications by weights of the base. */
const forwardProducts = ({ linear = [] }: Calls) => linear.reduce((sum, [y, , , weight]) => sum + product(y!, weight!), 0)
const backwardProducts = ({ linear_backward = [] }: Calls) =>
  linear_backward.reduce((sum, call) => sum + (call[0] ? product(call[6]!, call[8]!) : 0), 0)

const perToken = { q: H * Q, kv: 2 * H * KV, o: Q * H, mlp: 3 * H * I }
const layer = perToken.q + perToken.kv + perToken.o + perToken.mlp
const lastLayer = T * perToken.kv + R * (perToken.q + perToken.o + perToken.mlp)

t.test('forward: the last layer and the head at labelled rows only, tokens that predict nothing nowhere', async (t) => {
  await using model = await modelWith({ targetModules: 'all-linear' })
  t.equal(batch.numTokens, T + 4)
  const calls = await countOperations(model.device, null, () => model.forward(batch).dispose())
  t.equal(forwardProducts(calls), (LAYERS - 1) * T * layer + lastLayer)
  t.same(calls.embedding![0]![0], [T, H])
  t.equal(calls.linear_cross_entropy!.length, 1)
  t.same(calls.linear_cross_entropy![0]![6], [R, H])
  t.same(
    calls.attention!.map(([o]) => o![0]),
    [T, T, T, R],
  )
  t.same(
    calls.swiglu!.map(([y]) => y![0]),
    [T, T, T, R],
  )
  t.equal(calls.attention_plan!.length, 2, 'one plan for all layers, one for the last')
})

t.test('backward: nothing below the lowest adapter', async (t) => {
  const adapted: [LoraConfig, number][] = [
    // Into the lowest layer nothing needs a gradient of its input: queries, keys and values are differentiated for the adapter alone.
    [{ targetModules: 'all-linear' }, lastLayer + 2 * T * layer + T * (perToken.o + perToken.mlp)],
    [{ targetModules: 'all-linear', layersToTransform: [2, 3] }, lastLayer + T * (perToken.o + perToken.mlp)],
    [{ targetModules: ['down_proj'], layersToTransform: [3] }, 0],
    [{ targetModules: ['v_proj'], layersToTransform: [3] }, R * (perToken.o + perToken.mlp)],
  ]
  for (const [adapter, expected] of adapted) {
    await using model = await modelWith(adapter)
    const calls = await countOperations(model.device, null, () => {
      const { loss } = model.forward(batch)
      loss!.backward()
      loss!.dispose()
    })
    t.equal(backwardProducts(calls), expected, JSON.stringify(adapter))
    const gradientsOfWeights = calls.linear_backward!.filter((call) => call[2] !== null)
    t.equal(gradientsOfWeights.length, 0, 'frozen weights have no gradient')
    t.equal(calls.embedding_backward, undefined)
  }
})

t.test('memory: what is kept for the backward pass is that of the layers it goes through, and is gone after it', async (t) => {
  // Two residual sums, queries, keys, values, the attention's output, gate and up; rstd of two norms, lse, and x Aᵀ of seven adapters.
  const kept = (rows: number, keys: number) =>
    4 * (rows * (2 * H + 2 * Q + 2 * I + 4 + 5 * 8) + keys * (2 * KV + 2 + 2 * 8) + rows * 2)
  for (const layers of [[0, 1, 2, 3], [2, 3], [3]]) {
    await using model = await modelWith({ targetModules: 'all-linear', layersToTransform: layers })
    const bytes = async () => {
      await model.device.settled()
      return model.memoryUsage().current.activations
    }
    const before = await bytes()
    const { loss } = model.forward(batch)
    const during = (await bytes()) - before
    const expected = (layers.length - 1) * kept(T, T) + kept(R, T)
    t.ok(during < 1.15 * expected + 8000, `${during} bytes for layers ${layers}, ${expected} expected`)
    loss!.backward()
    loss!.dispose()
    t.equal(await bytes(), before)
  }
})
