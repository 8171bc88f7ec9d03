import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { writeSafetensors } from '../../../lib/formats/safetensors-writer.js'
import { openWeightFiles, readTensorBytes } from '../../../lib/formats/weight-files.js'
import { quantizedBytes } from '../../../lib/model/memory.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const

for (const [type, doubleQuant] of [
  ['nf4', true],
  ['fp4', false],
] as const) {
  t.test(`${type}: quantizing on load gives what bitsandbytes stored`, async (t) => {
    await using ours = await Model.fromPretrained(golden('models/llama'), { ...options, quantization: { type, doubleQuant } })
    await using theirs = await Model.fromPretrained(golden(`models/llama_bnb_${type}`), options)
    for (const [name, parameter] of theirs.parameters()) {
      t.equal(ours.parameters().get(name)!.dtype, parameter.dtype, name)
      t.equal(deviation(await ours.parameters().get(name)!.data(), await parameter.data()), 0, name)
    }
    t.equal(ours.parameters().get('lm_head.weight')!.dtype, 'float32')
    t.equal(ours.parameters().get('model.layers.0.mlp.up_proj.weight')!.dtype, type)
    const other = type === 'nf4' ? 'fp4' : 'nf4'
    await t.rejects(Model.fromPretrained(golden(`models/llama_bnb_${type}`), { ...options, quantization: other }), {
      code: 'ERR_INVALID_ARGUMENT',
    })
  })
}

t.test('what stays as it is', async (t) => {
  const quantization = { type: 'nf4', skipModules: ['lm_head', 'o_proj', 'model.layers.1'] } as const
  await using model = await Model.fromPretrained(golden('models/llama'), { ...options, quantization })
  const dtype = (name: string) => model.parameters().get(`${name}.weight`)!.dtype
  t.equal(dtype('model.layers.0.self_attn.q_proj'), 'nf4')
  t.equal(dtype('model.layers.0.self_attn.o_proj'), 'float32')
  t.equal(dtype('model.layers.1.self_attn.q_proj'), 'float32')
  await using head = await Model.fromPretrained(golden('models/llama'), {
    ...options,
    quantization: { type: 'nf4', skipModules: [] },
  })
  t.equal(head.parameters().get('lm_head.weight')!.dtype, 'nf4')
  t.throws(
    () => {
      head.parameters().get('lm_head.weight')!.requiresGrad = true
    },
    { code: 'ERR_INVALID_ARGUMENT' },
  )
})

t.test('loading holds one unquantized weight at a time', async (t) => {
  const config = JSON.parse(await readFile(golden('models/llama/config.json'), 'utf8'))
  const wide = { ...config, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 6, vocab_size: 64, dtype: 'bfloat16' }
  const source = join(folder, 'wide')
  await using dense = await Model.fromConfig(wide, options)
  await dense.savePretrained(source, { maxShardSize: '1MB' })
  const { device } = dense
  await dense.dispose()
  await device.settled()
  const before = device.memoryUsage().current.total
  device.resetPeak()
  const seen: number[] = []
  const onProgress = ({ stage, loadedBytes }: { stage: string; loadedBytes: number }) => {
    if (stage === 'quantize') seen.push(loadedBytes)
  }
  await using model = await Model.fromPretrained(source, { ...options, quantization: 'nf4', onProgress })
  const { current, peak } = model.memoryUsage()
  const { totalBytes } = await openWeightFiles(source)
  t.equal(seen.at(-1), totalBytes)
  const final = current.total - before
  const largest = 2 * 256 * 1024
  t.ok(peak.total - before <= final + 2 * largest, `peak ${peak.total - before}, final ${final}, all weights ${totalBytes}`)
  const estimate = await Model.estimateMemory(source, { quantization: 'nf4' })
  t.ok(Math.abs(final / estimate.weights - 1) < 0.05, `${final} bytes, estimated ${estimate.weights}`)
  t.ok(final < totalBytes / 3)
  t.equal(quantizedBytes([64, 256], { type: 'nf4', blockSize: 64, doubleQuant: true, skipModules: [] }), 8192 + 256 + 4)
})

t.test('bitsandbytes folders that lie', async (t) => {
  const source = golden('models/llama_bnb_nf4')
  const prefix = 'model.layers.0.self_attn.q_proj.weight'
  const state = `${prefix}.quant_state.bitsandbytes__nf4`
  const { entries } = await readSafetensorsHeader(join(source, 'model.safetensors'))
  let count = 0
  const changed = async (change: (name: string, bytes: Uint8Array) => Uint8Array | null) => {
    const target = join(folder, `bnb${count++}`)
    await cp(source, target, { recursive: true })
    const tensors = []
    for (const entry of entries.values()) {
      const bytes = await readTensorBytes({ ...entry, path: join(source, 'model.safetensors') })
      const data = change(entry.name, bytes)
      if (data === null) continue
      const isState = entry.name === state
      const floats = entry.dtype === 'F32' ? new Float32Array(data.slice().buffer) : data
      tensors.push({ name: entry.name, dtype: entry.dtype, shape: isState ? [data.length] : entry.shape, data: floats })
    }
    await writeSafetensors(join(target, 'model.safetensors'), tensors)
    return Model.fromPretrained(target, options)
  }
  const withState = (replace: (json: Record<string, unknown>) => unknown) =>
    changed((name, bytes) => {
      if (name !== state) return bytes
      return Buffer.from(JSON.stringify(replace(JSON.parse(Buffer.from(bytes).toString()))))
    })
  const corrupt = (message: RegExp) => ({ code: 'ERR_CORRUPT_FILE', message })
  await t.rejects(
    changed((name, bytes) => (name === `${prefix}.absmax` ? null : bytes)),
    corrupt(/q_proj\.weight\.absmax/),
  )
  await t.rejects(
    changed((name, bytes) => (name === state ? Buffer.from('{') : bytes)),
    corrupt(/is no JSON text/),
  )
  await t.rejects(
    withState((json) => ({ ...json, shape: [64, 128] })),
    corrupt(/q_proj\.weight": has 2048 bytes/),
  )
  await t.rejects(
    withState((json) => ({ ...json, shape: [32, 128] })),
    corrupt(/was quantized as \[32, 128\], config.json asks for \[64, 64\]/),
  )
  await t.rejects(
    withState((json) => ({ ...json, nested_offset: 'x' })),
    corrupt(/nested_offset/),
  )
  await t.rejects(
    withState((json) => ({ ...json, blocksize: 0 })),
    corrupt(/blocksize/),
  )
  await t.rejects(
    withState((json) => ({ ...json, blocksize: 4096 })),
    { code: 'ERR_UNSUPPORTED_QUANTIZATION', message: /4096/ },
  )
  const newCode = (name: string, bytes: Uint8Array) => (name === `${prefix}.quant_map` ? new Uint8Array(bytes.length) : bytes)
  await t.rejects(changed(newCode), { code: 'ERR_UNSUPPORTED_QUANTIZATION', message: /code of its own/ })
})

t.test('methods that are not there are refused before a weight is read', async (t) => {
  const target = join(folder, 'gptq')
  await cp(golden('models/llama'), target, { recursive: true })
  const config = JSON.parse(await readFile(join(target, 'config.json'), 'utf8'))
  await writeFile(
    join(target, 'config.json'),
    JSON.stringify({ ...config, quantization_config: { quant_method: 'gptq', bits: 4 } }),
  )
  await t.rejects(Model.fromPretrained(target, options), { code: 'ERR_UNSUPPORTED_QUANTIZATION', message: /GPTQ/ })
})
