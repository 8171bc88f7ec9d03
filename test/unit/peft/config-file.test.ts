import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { writeSafetensors } from '../../../lib/formats/safetensors-writer.js'
import { Model } from '../../../lib/model/model.js'
import { readAdapterConfig } from '../../../lib/peft/config-file.js'
import { golden } from '../model/goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const source = golden('train/lora_llama_qv_rslora/adapter')
const original = JSON.parse(await readFile(join(source, 'adapter_config.json'), 'utf8'))

async function read(changes: Record<string, unknown>) {
  const path = join(folder, 'adapter_config.json')
  await writeFile(path, JSON.stringify({ ...original, ...changes }))
  return readAdapterConfig(path)
}

t.test("PEFT's fields", async (t) => {
  const { config, tokenIds } = await read({})
  t.match(config, { type: 'lora', r: original.r, loraAlpha: original.lora_alpha, useRslora: true, bias: 'none' })
  t.same(new Set(config!.targetModules as string[]), new Set(['q_proj', 'v_proj']))
  t.equal(tokenIds.size, 0)
  t.match((await read({ target_modules: 'all-linear' })).config, { targetModules: 'all-linear' })
  t.match((await read({ init_lora_weights: 'eva' })).config, { initLoraWeights: true })
  t.match((await read({ layers_to_transform: 1 })).config, { layersToTransform: 1 })
  const tokens = async (indices: unknown) => [...(await read({ trainable_token_indices: indices })).tokenIds]
  t.same(await tokens([5, 3]), [['', [5, 3]]])
  t.same(await tokens({ embed_tokens: [5, 3], lm_head: [5] }), [
    ['embed_tokens', [5, 3]],
    ['lm_head', [5]],
  ])
  await t.rejects(read({ trainable_token_indices: [5, 5] }), { code: 'ERR_CORRUPT_FILE' })
})

t.test('what would change the meaning is refused by name', async (t) => {
  const refused = (field: string) => ({ code: 'ERR_INVALID_ARGUMENT', message: new RegExp(field), details: { field } })
  for (const [field, value] of Object.entries({
    use_dora: true,
    lora_bias: true,
    layer_replication: [[0, 2]],
    alora_invocation_tokens: [1],
    target_parameters: ['experts'],
    megatron_config: { a: 1 },
    a_field_of_tomorrow: 0.5,
  })) {
    await t.rejects(read({ [field]: value }), refused(field), field)
  }
  await read({ a_field_of_tomorrow: null, another: false, third: {}, use_dora: false })
  for (const start of ['pissa', 'olora', 'loftq', 'pissa_niter_16']) {
    await t.rejects(read({ init_lora_weights: start }), { code: 'ERR_INVALID_ARGUMENT', message: /init_lora_weights/ }, start)
  }
  await t.rejects(read({ peft_type: 'VERA' }), { code: 'ERR_INVALID_ARGUMENT', message: /"VERA"/ })
})

t.test('folders that are damaged', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  const target = join(folder, 'adapter')
  await cp(source, target, { recursive: true })
  const weights = join(target, 'adapter_model.safetensors')
  const bytes = await readFile(weights)
  await writeFile(weights, bytes.subarray(0, bytes.length - 4))
  await t.rejects(model.loadAdapter(target), { code: 'ERR_CORRUPT_FILE', message: /truncated/ })
  await rm(weights)
  await t.rejects(model.loadAdapter(target), { code: 'ERR_IO', message: /adapter_model\.safetensors/ })
  await writeFile(join(target, 'adapter_model.bin'), 'PK')
  await t.rejects(model.loadAdapter(target), { code: 'ERR_CORRUPT_FILE', message: /pickle/ })
  await writeSafetensors(weights, [])
  await t.rejects(model.loadAdapter(target), { code: 'ERR_ADAPTER_MISMATCH', message: /it has no tensor "base_model/ })
  const name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
  await writeSafetensors(weights, [{ name, dtype: 'I32', shape: [original.r, 64], data: new Int32Array(original.r * 64) }])
  await t.rejects(model.loadAdapter(target), { code: 'ERR_CORRUPT_FILE', message: /is I32/ })
  await rm(join(target, 'adapter_config.json'))
  await t.rejects(model.loadAdapter(target), { code: 'ERR_IO', message: /adapter_config\.json/ })
  t.same(model.adapters, [])
  const before = model.memoryUsage().current.adapters
  await model.device.settled()
  t.equal(before, model.memoryUsage().current.adapters)
  t.equal(model.memoryUsage().current.adapters, 0, 'nothing stays of what failed')
})

t.test('token rows of modules', async (t) => {
  const target = join(folder, 'tokens')
  await cp(golden('tokens/llama_tied/adapter'), target, { recursive: true })
  const path = join(target, 'adapter_config.json')
  const json = JSON.parse(await readFile(path, 'utf8'))
  const ids: number[] = json.trainable_token_indices
  await using model = await Model.fromPretrained(golden('models/llama_tied'), { device: 'cpu', dtype: 'float32' })
  const load = async (indices: unknown, name: string) => {
    await writeFile(path, JSON.stringify({ ...json, trainable_token_indices: indices }))
    await model.loadAdapter(target, { name })
    return model.resolveAdapter(name)!.tokenRows!.head!.tokenIds
  }
  t.same(await load({ embed_tokens: ids, lm_head: ids }, 'both'), ids)
  t.same(await load({ 'model.embed_tokens': ids }, 'embedding'), ids, 'a tied head follows the embedding')
  const refused = { code: 'ERR_INVALID_ARGUMENT' }
  await t.rejects(load({ embed_tokens: ids, lm_head: ids.slice(1) }, 'x'), { ...refused, message: /which are tied/ })
  await t.rejects(load({ embed_tokens: ids, classifier: ids }, 'x'), { ...refused, message: /classifier/ })
  await t.rejects(load({ lm_head: ids }, 'x'), { ...refused, message: /without rows of the embedding/ })
})
