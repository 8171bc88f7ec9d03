import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { LoraAdapter, type LoraConfig } from '../../../lib/peft/lora.js'
import { createTokenRows } from '../../../lib/peft/token-rows.js'
import { allLogits, disposeNetwork, referenceNetwork, trainingPass } from '../../support/network.js'

const llama = await referenceNetwork('llama')
const qwen2 = await referenceNetwork('qwen2')
const gpt2 = await referenceNetwork('gpt2')
t.teardown(() => {
  for (const network of [llama, qwen2, gpt2]) disposeNetwork(network)
})

const modulesOf = (config: LoraConfig, network = llama) => {
  const adapter = LoraAdapter.create('a', config, network)
  const names = [...adapter.layers.keys()]
  adapter.dispose()
  return names
}

t.test('layers are chosen as PEFT chooses them', async (t) => {
  t.same(
    modulesOf({}),
    [0, 1, 2].flatMap((i) => ['q_proj', 'v_proj'].map((m) => `model.layers.${i}.self_attn.${m}`)),
  )
  t.same(modulesOf({}, gpt2), ['transformer.h.0.attn.c_attn', 'transformer.h.1.attn.c_attn'])
  t.equal(modulesOf({ targetModules: 'all-linear' }).length, 21, 'without the head')
  t.equal(modulesOf({ targetModules: ['c_proj'] }, gpt2).length, 4, 'of attention and MLP')
  t.same(modulesOf({ targetModules: ['self_attn.q_proj', 'lm_head'], layersToTransform: [1] }), [
    'model.layers.1.self_attn.q_proj',
  ])
  t.same(modulesOf({ targetModules: ['lm_head'] }), ['lm_head'])
  t.same(modulesOf({ targetModules: /.*\.2\..*(up|down)_proj/ }), [
    'model.layers.2.mlp.up_proj',
    'model.layers.2.mlp.down_proj',
  ])
  t.same(modulesOf({ targetModules: ['q_proj'], excludeModules: /.*\.[01]\..*/ }), ['model.layers.2.self_attn.q_proj'])
  t.throws(() => modulesOf({ targetModules: ['proj'] }), { code: 'ERR_INVALID_ARGUMENT' }, 'part of a name is no match')
})

t.test('mistakes are named', async (t) => {
  const refused = (config: object, message: RegExp) =>
    t.throws(() => LoraAdapter.create('a', config as LoraConfig, llama), { code: 'ERR_INVALID_ARGUMENT', message })
  refused({ targetModules: ['q_proj', 'query'] }, /"query".*q_proj, k_proj/)
  refused({ targetModules: /query/ }, /query.*matches no linear layer/)
  refused({ modulesToSave: ['classifier'] }, /classifier/)
  refused({ lora_alpha: 3 }, /loraAlpha/)
  refused({ r: 0 }, /r: expected/)
  refused({ loraDropout: 1 }, /loraDropout/)
  refused({ targetModules: ['lm_head'], loraDropout: 0.1 }, /lm_head.*dropout/)
})

t.test('scale, rank and initial values', async (t) => {
  const adapter = LoraAdapter.create(
    'a',
    {
      r: 4,
      loraAlpha: 8,
      targetModules: ['q_proj', 'v_proj'],
      rankPattern: { 'layers.1.self_attn.q_proj': 2 },
      alphaPattern: { v_proj: 1 },
    },
    llama,
  )
  const [q0, q1, v0] = ['0.self_attn.q_proj', '1.self_attn.q_proj', '0.self_attn.v_proj'].map(
    (name) => adapter.layers.get(`model.layers.${name}`)!,
  )
  t.match([q0!.scale, q1!.scale, v0!.scale], [2, 4, 0.25])
  t.same(
    [q0!.a.shape, q0!.b.shape, q1!.a.shape],
    [
      [4, 64],
      [64, 4],
      [2, 64],
    ],
  )
  t.equal(q0!.a.name, 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight')
  const a = await q0!.a.data()
  t.ok(a.every((x) => Math.abs(x) <= 1 / 8) && a.some((x) => Math.abs(x) > 0.1), 'uniform within 1 / √64')
  t.ok((await q0!.b.data()).every((x) => x === 0))
  adapter.dispose()
  const rs = LoraAdapter.create('a', { r: 4, loraAlpha: 8, useRslora: true, initLoraWeights: 'gaussian', seed: 7 }, llama)
  const layer = rs.layers.get('model.layers.0.self_attn.q_proj')!
  t.equal(layer.scale, 4)
  const normal = await layer.a.data()
  t.ok(Math.abs(Math.sqrt(normal.reduce((s, x) => s + x * x, 0) / normal.length) - 1 / 4) < 0.05)
  rs.dispose()
})

const batch = Batch.pack([{ inputIds: [4, 8, 15, 16, 23, 42], labels: [-100, -100, 15, 16, 23, 42] }])

t.test('a new adapter changes nothing; each call chooses its own', async (t) => {
  const base = await allLogits(llama, batch)
  const fresh = LoraAdapter.create('fresh', { targetModules: 'all-linear' }, llama)
  t.same(await allLogits(llama, batch, fresh), base)
  const other = LoraAdapter.create('other', { targetModules: 'all-linear', initLoraWeights: false }, llama)
  t.notSame(await allLogits(llama, batch, other), base)
  other.merged = true
  t.same(await allLogits(llama, batch, other), base, 'while merged, the layers get no update')
  t.same(await allLogits(llama, batch), base)
  fresh.dispose()
  other.dispose()
})

t.test('biases and saved modules are copies that this adapter alone uses', async (t) => {
  const all = LoraAdapter.create('a', { bias: 'all', targetModules: ['q_proj'], modulesToSave: ['lm_head', 'norm'] }, qwen2)
  t.ok(all.parameters().has('base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias'), 'of a wrapped layer')
  t.ok(all.parameters().has('base_model.model.model.layers.0.self_attn.k_proj.bias'), 'of another')
  t.ok(all.parameters().has('base_model.model.lm_head.weight'), 'a tied head is untied')
  t.same(await allLogits(qwen2, batch, all), await allLogits(qwen2, batch))
  await trainingPass(qwen2, batch, { adapter: all })
  for (const [name, parameter] of all.parameters())
    t.ok((await parameter.grad())?.some((g) => g !== 0) || name.includes('lora_A') || name.includes('k_proj.bias'), name)
  all.dispose()
  const own = LoraAdapter.create('a', { bias: 'lora_only', targetModules: ['q_proj'] }, qwen2)
  t.equal([...own.parameters().keys()].filter((name) => name.endsWith('.bias')).length, 2)
  own.dispose()
})

t.test('rows for new tokens', async (t) => {
  const values = Float32Array.from({ length: 2 * 64 }, (_, i) => Math.sin(i) / 10)
  const adapter = LoraAdapter.create('a', {}, qwen2)
  adapter.setTokenRows(createTokenRows(qwen2, [256, 9], { values }))
  const withNew = Batch.pack([{ inputIds: [4, 256, 9, 3], labels: [-100, -100, 9, 3] }])
  await t.rejects(allLogits(qwen2, withNew), 'the base does not know the token')
  await trainingPass(qwen2, withNew, { adapter })
  const rows = adapter.parameters().get('base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta')!
  const gradient = (await rows.grad())!
  t.ok(gradient.subarray(0, 64).some((g) => g !== 0) && gradient.subarray(64).some((g) => g !== 0))
  t.equal(qwen2.parameters.get('model.embed_tokens.weight')!.gradient, null)
  t.throws(() => createTokenRows(qwen2, [256], { values }), { code: 'ERR_INVALID_ARGUMENT' })
  adapter.dispose()
})
