/** LLM.int8 from the files to a trained adapter. test/fixtures/int8 holds folders as bitsandbytes stores them, and PyTorch's logits. */
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { elementsOf } from '../../../lib/formats/dtypes.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { writeSafetensors } from '../../../lib/formats/safetensors-writer.js'
import { openWeightFiles, readTensorBytes } from '../../../lib/formats/weight-files.js'
import { Generator } from '../../../lib/generation/index.js'
import { quantizedBytes } from '../../../lib/model/memory.js'
import { Model } from '../../../lib/model/model.js'
import { Trainer } from '../../../lib/training/trainer.js'
import type { LogEvent } from '../../../lib/training/types.js'
import { collator, type Example } from '../training/bigram.js'
import { deviation, golden, logitsOf, readGolden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const
const stored = (name: string) => fileURLToPath(new URL(`../../fixtures/int8/${name}`, import.meta.url))
/** Those of the fixtures. */
const int8 = { type: 'int8', threshold: 3 } as const

/** In how many rows two sets of logits differ: an input on the border between two codes may fall to either side. */
function compare(a: Float32Array, b: Float32Array, length: number) {
  const width = b.length / length
  const row = (x: Float32Array, i: number) => x.subarray(i * width, (i + 1) * width)
  const deviations = Array.from({ length }, (_, i) => deviation(row(a, i), row(b, i)))
  return { rows: deviations.filter((off) => !(off < 2e-5)).length, most: Math.max(...deviations) }
}

for (const name of ['llama', 'gpt2']) {
  t.test(`${name}: a folder of bitsandbytes', and the same from float32 files`, async (t) => {
    const file = `../int8/${name}/expected.safetensors`
    const { ids } = await readGolden(file, 'input_ids')
    const { values: expected } = await readGolden(file, 'logits')
    await using theirs = await Model.fromPretrained(stored(name), options)
    await using ours = await Model.fromPretrained(golden(`models/${name}`), { ...options, quantization: int8 })
    let quantized = 0
    for (const [key, parameter] of theirs.parameters()) {
      const own = ours.parameters().get(key)!
      t.equal(own.dtype, parameter.dtype, key)
      t.equal(deviation(await own.data(), await parameter.data()), 0, key)
      if (parameter.dtype === 'llm_int8') quantized++
    }
    t.equal(quantized, name === 'llama' ? 21 : 8)
    const { rows, most } = compare(await logitsOf(theirs, ids), expected, ids[0]!.length)
    t.ok(rows <= 2 && most < 0.02, `${rows} rows differ, by ${most} at most`)
    t.equal(deviation(await logitsOf(ours, ids), await logitsOf(theirs, ids)), 0)
    for (const threshold of [0, 6]) {
      await using other = await Model.fromPretrained(golden(`models/${name}`), {
        ...options,
        quantization: { ...int8, threshold },
      })
      const { rows } = compare(await logitsOf(other, ids), expected, ids[0]!.length)
      t.equal(rows, ids[0]!.length, 'another threshold is something else')
    }
    await t.rejects(Model.fromPretrained(stored(name), { ...options, quantization: 'nf4' }), {
      code: 'ERR_INVALID_ARGUMENT',
      message: /int8 already/,
    })
    const estimate = await Model.estimateMemory(stored(name))
    const same = await Model.estimateMemory(golden(`models/${name}`), { quantization: 'int8' })
    t.equal(estimate.weights, same.weights)
    const used = theirs.memoryUsage().current.weights - ours.memoryUsage().current.weights
    t.equal(used, 0)
  })
}

t.test('a weight takes a byte an input, rows rounded up, and a float32 an output', async (t) => {
  const model = await Model.fromPretrained(golden('models/llama'), { ...options, quantization: 'int8' })
  const { device } = model
  const before = device.memoryUsage().current.weights
  const { weights } = await Model.estimateMemory(golden('models/llama'), { quantization: 'int8' })
  await model.dispose()
  await device.settled()
  const bytes = before - device.memoryUsage().current.weights
  t.ok(Math.abs(bytes / weights - 1) < 0.02, `${bytes} bytes, estimated ${weights}`)
  t.equal(quantizedBytes([10, 65], { type: 'int8', threshold: 6, skipModules: [] }), 10 * 128 + 40)
})

t.test('an adapter learns, generates, is saved and merged', async (t) => {
  const texts = Array.from({ length: 12 }, (_, i) => ({
    inputIds: Array.from({ length: 6 + i }, (_, t) => (i * 31 + t * 7) % 250),
  }))
  for (const name of ['llama', 'gpt2']) {
    const source = golden(`models/${name}`)
    await using model = await Model.fromPretrained(source, { ...options, quantization: int8 })
    const linear = [...model.network.linearLayers.values()].map(({ weight }) => weight)
    const tied = !model.parameters().has(`${model.network.headName}.weight`)
    t.equal(linear.filter(({ dtype }) => dtype === 'llm_int8').length, linear.length - 1, 'all but the head')
    t.throws(
      () => {
        linear[0]!.requiresGrad = true
      },
      { code: 'ERR_INVALID_ARGUMENT', message: /llm_int8/ },
    )
    const frozen = await linear[0]!.data()
    model.addAdapter({ type: 'lora', r: 4, loraAlpha: 8, targetModules: 'all-linear', loraDropout: 0.1, seed: 3 })
    const logs: LogEvent[] = []
    const trainer = new Trainer<Example>({
      model,
      collator,
      trainDataset: texts,
      args: {
        ...{ outputDir: join(folder, `${name}-run`), disableProgress: true, loggingSteps: 1, saveStrategy: 'no' },
        ...{ maxSteps: 12, learningRate: 0.01, perDeviceTrainBatchSize: 6, gradientCheckpointing: true },
      },
    })
    trainer.on('log', (event) => logs.push(event))
    await trainer.train()
    t.ok(logs.at(-1)!.loss < 0.95 * logs[0]!.loss, `${name}: ${logs.map(({ loss }) => loss.toFixed(3)).join(' ')}`)
    t.equal(deviation(await linear[0]!.data(), frozen), 0, 'the base stays as it is')
    const { tokenIds } = await new Generator(model).generate({ inputIds: [1, 38, 45] }, { maxNewTokens: 6, doSample: false })
    t.equal(tokenIds.length, 6)

    const ids = [[5, 17, 9, 200, 31, 8]]
    const adapted = await logitsOf(model, ids)
    await model.savePretrained(join(folder, `${name}-dequantized`), { mergeAdapter: true, base: 'dequantized' })
    await using whole = await Model.fromPretrained(join(folder, `${name}-dequantized`), options)
    t.equal(whole.config.quantization_config, undefined)
    const off = deviation(await logitsOf(whole, ids), adapted)
    t.ok(off < 0.2, `merged and saved: but for the rounding of inputs the same, ${off}`)
    if (tied) continue // its head cannot be merged in place
    await model.mergeAdapter('default')
    t.equal(linear[0]!.dtype, 'float32')
    t.ok(deviation(await logitsOf(model, ids), await logitsOf(whole, ids)) < 1e-4, 'merged in memory: the same as saved')
    await model.unmergeAdapter('default')
    t.equal(deviation(await logitsOf(model, ids), adapted), 0, 'and back')
  }
})

t.test('a head of int8', async (t) => {
  const batch = Batch.fromPadded({ inputIds: [[5, 17, 9, 200, 31, 8]], labels: [[-100, 17, 9, 200, 31, 8]] })
  const losses = []
  for (const skipModules of [['lm_head'], []]) {
    await using model = await Model.fromPretrained(golden('models/llama'), {
      ...options,
      quantization: { ...int8, skipModules },
    })
    t.equal(model.parameters().get('lm_head.weight')!.dtype, skipModules.length > 0 ? 'float32' : 'llm_int8')
    const result = model.forward(batch)
    losses.push(await result.loss!.item())
    result.dispose()
    const { tokenIds } = await new Generator(model).generate({ inputIds: [1, 38, 45] }, { maxNewTokens: 4, doSample: false })
    t.equal(tokenIds.length, 4)
  }
  const [dense, quantized] = losses as [number, number]
  t.ok(dense !== quantized && Math.abs(dense - quantized) < 0.01 * dense, `${dense} ${quantized}`)
})

t.test('folders that lie', async (t) => {
  const source = stored('llama')
  const module = 'model.layers.0.self_attn.q_proj'
  const files = await openWeightFiles(source)
  const { entries } = await readSafetensorsHeader(join(source, 'model.safetensors'))
  let count = 0
  const changed = async (
    change: (name: string) => { shape?: number[]; data?: Int8Array | Float32Array | Uint8Array } | null,
  ) => {
    const target = join(folder, `lies${count++}`)
    await cp(source, target, { recursive: true })
    const tensors = []
    for (const { name, dtype, shape } of entries.values()) {
      const changes = change(name)
      if (changes === null) continue
      const data = changes.data ?? elementsOf(dtype, await readTensorBytes(files.tensors.get(name)!))!
      tensors.push({ name, dtype, shape: changes.shape ?? shape, data })
    }
    await writeSafetensors(join(target, 'model.safetensors'), tensors)
    return Model.fromPretrained(target, options)
  }
  const corrupt = (message: RegExp) => ({ code: 'ERR_CORRUPT_FILE', message })
  const only = (wanted: string, change: ReturnType<Parameters<typeof changed>[0]>) => (name: string) =>
    name === `${module}.${wanted}` ? change : {}
  await t.rejects(changed(only('SCB', null)), corrupt(/q_proj\.SCB.*missing/))
  await t.rejects(changed(only('SCB', { shape: [32], data: new Float32Array(32) })), corrupt(/q_proj\.SCB.*128 bytes/))
  const halves = only('weight', { shape: [32, 128] })
  await t.rejects(changed(halves), corrupt(/was quantized as \[32, 128\], config.json asks for \[64, 64\]/))
  await t.rejects(changed(only('weight_format', { data: Uint8Array.of(2) })), {
    code: 'ERR_UNSUPPORTED_QUANTIZATION',
    message: /layout 2/,
  })
  await (await changed(only('weight_format', null))).dispose()
  t.equal(JSON.parse(await readFile(join(source, 'config.json'), 'utf8')).quantization_config.load_in_8bit, true)
})
