import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden, logitsOf, readGolden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const
const load = (name: string, more = {}) => Model.fromPretrained(golden(`models/${name}`), { ...options, ...more })

for (const [name, base] of [
  ['lora_llama_all_linear', 'llama'],
  ['lora_llama_qv_rslora', 'llama'],
  ['lora_gpt2', 'gpt2'],
] as const) {
  t.test(`${name}: loaded, merged, saved merged`, async (t) => {
    await using model = await load(base)
    await model.loadAdapter(golden(`train/${name}/adapter_final`), { name: 'trained' })
    t.equal(model.activeAdapter, 'trained')
    t.same(model.trainableParameters(), [])
    const file = `train/${name}/merged.safetensors`
    const { ids } = await readGolden(file, 'input_ids')
    const { values } = await readGolden(file, 'logits')
    t.ok(deviation(await logitsOf(model, ids), values) < 2e-5, 'adapter beside the base')
    const bare = await logitsOf(model, ids, null)
    t.ok(deviation(bare, values) > 1e-3, 'the bare base is another model')

    await model.mergeAdapter('trained')
    t.ok(deviation(await logitsOf(model, ids), values) < 2e-5, 'merged')
    const { entries } = await readSafetensorsHeader(golden(file))
    const weights = [...entries.keys()].filter((key) => key.startsWith('weight.'))
    for (const key of weights) {
      const merged = await model.parameters().get(key.slice('weight.'.length))!.data()
      t.ok(deviation(merged, (await readGolden(file, key)).values) < 1e-6, key)
    }
    t.throws(() => model.resolveAdapter(null), { code: 'ERR_INVALID_ARGUMENT', message: /merged/ })
    await model.savePretrained(join(folder, name))
    await model.unmergeAdapter('trained')
    t.equal(deviation(await logitsOf(model, ids, null), bare), 0, 'unmerged exactly')

    await using saved = await Model.fromPretrained(join(folder, name), options)
    t.ok(deviation(await logitsOf(saved, ids), values) < 2e-5, 'saved merged and loaded again')
    t.equal(saved.config.model_type, base)
  })
}

t.test('an adapter survives saving, bit for bit', async (t) => {
  await using model = await load('llama')
  const rng = { r: 3, loraAlpha: 12, seed: 7, initLoraWeights: false } as const
  model.addAdapter(
    { ...rng, targetModules: 'all-linear', rankPattern: { q_proj: 5 }, alphaPattern: { 'mlp.*': 4 }, useRslora: true },
    'a',
  )
  model.addAdapter({ ...rng, targetModules: /.*layers\.[01]\..*(q|v)_proj/, modulesToSave: ['lm_head'] }, 'b')
  const ids = [[1, 2, 3, 4, 5]]
  for (const name of ['a', 'b']) {
    await model.saveAdapter(join(folder, name), name)
    await model.loadAdapter(join(folder, name), { name: `${name}2`, trainable: true })
    t.equal(deviation(await logitsOf(model, ids, `${name}2`), await logitsOf(model, ids, name)), 0)
    const own = model.withAdapter(name).trainableParameters()
    const again = model.withAdapter(`${name}2`).trainableParameters()
    t.same(again.map((p) => [p.name, p.shape]).sort(), own.map((p) => [p.name, p.shape]).sort())
  }
  const config = JSON.parse(await readFile(join(folder, 'b', 'adapter_config.json'), 'utf8'))
  t.same(config.target_modules.slice(0, 2), ['model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.v_proj'])
  t.same(config.modules_to_save, ['lm_head'])
  t.notSame(await logitsOf(model, ids, 'a'), await logitsOf(model, ids, 'b'))
  t.equal(model.activeAdapter, 'a')
  model.setAdapter('b')
  t.equal(deviation(await logitsOf(model, ids), await logitsOf(model, ids, 'b')), 0)
  t.equal(deviation(await logitsOf(model.withAdapter('a'), ids), await logitsOf(model, ids, 'a')), 0)
  t.throws(() => model.withAdapter('a').setAdapter('b'), { code: 'ERR_INVALID_ARGUMENT' })
  t.throws(() => model.setAdapter('c'), { code: 'ERR_INVALID_ARGUMENT', message: /there are a, b, a2, b2/ })
  t.throws(() => model.addAdapter({}, 'a'), { code: 'ERR_INVALID_ARGUMENT', message: /already/ })
})

t.test('merging into a quantized base', async (t) => {
  await using model = await load('llama', { quantization: 'nf4' })
  await model.loadAdapter(golden('train/lora_llama_all_linear/adapter_final'))
  const ids = [[5, 9, 33, 12, 7]]
  const before = await logitsOf(model, ids)
  const bare = await logitsOf(model, ids, null)
  await model.mergeAdapter('default')
  t.ok(deviation(await logitsOf(model, ids), before) < 2e-5)
  t.equal(model.parameters().get('model.layers.0.mlp.up_proj.weight')!.dtype, 'float32')
  await model.savePretrained(join(folder, 'dequantized'), { base: 'dequantized' })
  await model.savePretrained(join(folder, 'original'))
  await model.unmergeAdapter('default')
  t.equal(deviation(await logitsOf(model, ids, null), bare), 0)
  t.equal(model.parameters().get('model.layers.0.mlp.up_proj.weight')!.dtype, 'nf4')

  await using dequantized = await Model.fromPretrained(join(folder, 'dequantized'), options)
  t.ok(deviation(await logitsOf(dequantized, ids), before) < 2e-5, 'dequantized: what was trained')
  await using original = await Model.fromPretrained(join(folder, 'original'), options)
  await using reference = await load('llama')
  await reference.loadAdapter(golden('train/lora_llama_all_linear/adapter_final'))
  t.ok(
    deviation(await logitsOf(original, ids), await logitsOf(reference, ids)) < 2e-5,
    'original: without the loss of four bits',
  )
  await t.rejects(model.savePretrained(golden('models/llama')), { code: 'ERR_INVALID_ARGUMENT', message: /loaded from/ })
})

t.test('an adapter for another base', async (t) => {
  const mismatch = (message: RegExp) => ({ code: 'ERR_ADAPTER_MISMATCH', message })
  await using llama = await load('llama')
  const adapter = (name: string) => golden(`train/${name}/adapter`)
  await t.rejects(llama.loadAdapter(adapter('lora_gpt2')), mismatch(/"c_(attn|proj|fc)" matches no linear layer/))
  await using gpt2 = await load('gpt2')
  await t.rejects(gpt2.loadAdapter(adapter('lora_llama_all_linear')), { code: 'ERR_ADAPTER_MISMATCH' })
  await using tied = await load('llama_tied')
  await t.rejects(tied.loadAdapter(adapter('lora_llama_all_linear')), mismatch(/layers\.2.*\[4, 64\]|layers\.2/))
  const narrow = { ...llama.config, hidden_size: 32 }
  await using other = await Model.fromConfig(narrow, options)
  await t.rejects(
    other.loadAdapter(adapter('lora_llama_all_linear')),
    mismatch(/tensor "base_model\.model\..*lora_A\.weight" is \[4, 64\], the base asks for \[4, 32\]/),
  )
  for (const name of ['adalora', 'ia3', 'prefix_tuning']) {
    await t.rejects(llama.loadAdapter(adapter(name)), {
      code: 'ERR_INVALID_ARGUMENT',
      message: /peft_type "[A-Z0-9_]+" is not supported/,
    })
  }
  t.same(llama.adapters, [])
})

t.test('calls in flight hold back merging and disposing', async (t) => {
  const model = await load('llama')
  model.addAdapter({ r: 2 })
  const end = model.beginCall('generate')
  const second = model.beginCall('train', 'train default')
  t.throws(() => model.beginCall('train', 'train default'), { code: 'ERR_BUSY' })
  const events: string[] = []
  const merged = model.mergeAdapter('default').then(() => events.push('merged'))
  const disposed = merged.then(() => model.dispose()).then(() => events.push('disposed'))
  await new Promise((resolve) => setTimeout(resolve, 10))
  end()
  end()
  await new Promise((resolve) => setTimeout(resolve, 10))
  t.same(events, [])
  second()
  await disposed
  t.same(events, ['merged', 'disposed'])
})

t.test('no call begins while an adapter is being merged', async (t) => {
  await using model = await load('llama')
  model.addAdapter({ r: 2, initLoraWeights: false })
  const end = model.beginCall('generate')
  let mergedAtBegin: boolean | undefined
  const ended = Promise.resolve().then(end)
  // Callers whose own call has just ended start the next one a few microtasks later.
  const next = ended.then(() => {
    mergedAtBegin = model.resolveAdapter('default')!.lora('model.layers.0.self_attn.q_proj') === null
  })
  await Promise.all([model.mergeAdapter('default'), next])
  t.equal(mergedAtBegin, true)
})
