import { cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { elementsOf } from '../../../lib/formats/dtypes.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { type SafetensorsSource, writeSafetensors } from '../../../lib/formats/safetensors-writer.js'
import { readTensorBytes } from '../../../lib/formats/weight-files.js'
import { Model } from '../../../lib/model/model.js'
import { golden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const load = (source: string) => Model.fromPretrained(source, { device: 'cpu', dtype: 'float32' })
const corrupt = (message: RegExp) => ({ code: 'ERR_CORRUPT_FILE', message })

let count = 0
async function copy(name = 'llama'): Promise<string> {
  const target = join(folder, String(count++))
  await cp(golden(`models/${name}`), target, { recursive: true })
  return target
}

async function withTensors(change: (tensors: SafetensorsSource[]) => SafetensorsSource[]): Promise<string> {
  const target = await copy()
  const path = join(target, 'model.safetensors')
  const { entries } = await readSafetensorsHeader(path)
  const tensors: SafetensorsSource[] = []
  for (const entry of entries.values()) {
    const data = elementsOf(entry.dtype, await readTensorBytes({ ...entry, path }))!
    tensors.push({ name: entry.name, dtype: entry.dtype, shape: entry.shape, data })
  }
  await writeSafetensors(path, change(tensors))
  return target
}

t.test('weights', async (t) => {
  const truncated = await copy()
  const path = join(truncated, 'model.safetensors')
  await writeFile(path, (await readFile(path)).subarray(0, 300_000))
  await t.rejects(load(truncated), corrupt(/truncated/))

  const norm = 'model.norm.weight'
  await t.rejects(
    load(await withTensors((all) => all.filter(({ name }) => name !== norm))),
    corrupt(/"model\.norm\.weight": is not in/),
  )
  const reshaped = (all: SafetensorsSource[]) => all.map((x) => (x.name === norm ? { ...x, shape: [8, 8] } : x))
  await t.rejects(load(await withTensors(reshaped)), corrupt(/has shape \[8, 8\], config\.json asks for \[64\]/))
  const integer = (all: SafetensorsSource[]) =>
    all.map((x) => (x.name === norm ? { ...x, dtype: 'I32' as const, data: new Int32Array(64) } : x))
  await t.rejects(load(await withTensors(integer)), corrupt(/is I32/))
  const bias = { name: 'model.layers.0.self_attn.q_proj.bias', dtype: 'F32', shape: [64], data: new Float32Array(64) } as const
  await t.rejects(load(await withTensors((all) => [...all, bias])), {
    code: 'ERR_UNSUPPORTED_ARCHITECTURE',
    message: /q_proj\.bias/,
  })
  const buffer = { ...bias, name: 'model.layers.0.self_attn.rotary_emb.inv_freq' }
  await (await load(await withTensors((all) => [...all, buffer]))).dispose()
})

t.test('shards', async (t) => {
  const source = join(folder, 'sharded')
  await using model = await load(golden('models/llama'))
  await model.savePretrained(source, { maxShardSize: 200_000 })
  await using sharded = await load(source)
  t.equal(sharded.parameters().size, model.parameters().size)
  const shards = JSON.parse(await readFile(join(source, 'model.safetensors.index.json'), 'utf8'))
  t.equal(shards.metadata.total_size, 4 * [...model.parameters().values()].reduce((sum, { value }) => sum + value.size, 0))
  const second = join(source, 'model-00002-of-00003.safetensors')
  await rename(second, `${second}.gone`)
  await t.rejects(load(source), { code: 'ERR_IO', message: /model-00002-of-00003\.safetensors: no such file/ })
  await rename(`${second}.gone`, second)
  const index = async (change: (map: Record<string, unknown>) => unknown) => {
    await writeFile(
      join(source, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: change({ ...shards.weight_map }) }),
    )
    return load(source)
  }
  await t.rejects(
    index((map) => ({ ...map, ghost: 'model-00001-of-00003.safetensors' })),
    corrupt(/"ghost": is not there/),
  )
  await t.rejects(
    index(({ 'model.norm.weight': _, ...map }) => map),
    corrupt(/"model\.norm\.weight": is not in/),
  )
  await t.rejects(
    index((map) => ({ ...map, evil: '../../../etc/passwd.safetensors' })),
    corrupt(/no safetensors file of this folder/),
  )
  await t.rejects(
    index(() => []),
    corrupt(/weight_map/),
  )
})

t.test('other files', async (t) => {
  const pickled = await copy()
  await rename(join(pickled, 'model.safetensors'), join(pickled, 'pytorch_model.bin'))
  await t.rejects(load(pickled), corrupt(/pytorch_model\.bin: quantune reads safetensors files only/))
  await rm(join(pickled, 'pytorch_model.bin'))
  await t.rejects(load(pickled), { code: 'ERR_IO', message: /model\.safetensors: no such file/ })
  const empty = join(folder, 'empty')
  await mkdir(empty)
  await t.rejects(load(empty), { code: 'ERR_IO', message: /config\.json/ })
  await writeFile(join(empty, 'config.json'), '{"model_type": ')
  await t.rejects(load(empty), corrupt(/config\.json: not valid JSON/))
  await writeFile(join(empty, 'config.json'), '{"model_type": "t5"}')
  await t.rejects(load(empty), { code: 'ERR_UNSUPPORTED_ARCHITECTURE', message: /"t5".*llama/ })

  const tokens = await copy()
  await cp(golden('chat/chatml/tokenizer/tokenizer.json'), join(tokens, 'tokenizer.json'))
  await t.rejects(load(tokens), corrupt(/the tokenizer has ids up to \d+, the model's embedding has 256 rows/))
})

t.test('options', async (t) => {
  const refused = (message: RegExp) => ({ code: 'ERR_INVALID_ARGUMENT', message })
  const source = golden('models/llama')
  await t.rejects(Model.fromPretrained(source, { quantisation: 'nf4' } as never), refused(/quantization/))
  await t.rejects(Model.fromPretrained(source, { dtype: 'float16' as 'float32' }), refused(/dtype/))
  await t.rejects(Model.fromPretrained(source, { device: 'tpu' as 'cpu' }), refused(/device/))
  await t.rejects(Model.fromPretrained('', {}), refused(/folder or a Hub id/))
  const reason = new Error('enough')
  await t.rejects(Model.fromPretrained(source, { device: 'cpu', signal: AbortSignal.abort(reason) }), reason)
  const controller = new AbortController()
  const onProgress = () => controller.abort(reason)
  await t.rejects(Model.fromPretrained(source, { device: 'cpu', signal: controller.signal, onProgress }), reason)
})
