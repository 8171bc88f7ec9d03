/**
 * Proves that PEFT and transformers read what quantune writes: adapters (with and without new tokens), merged and plain model
 * folders give the same logits there. Needs a Python with torch, transformers and peft:
 *
 *     npm run build:ts && node dist/scripts/check-peft.js PYTHON [GOLDENS]
 *
 * GOLDENS is a folder in the layout of test/fixtures/goldens (default).
 */
import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Batch } from '../lib/data/batch.js'
import { Tokenizer } from '../lib/data/tokenizer.js'
import { Model } from '../lib/model/model.js'
import type { LoraConfig } from '../lib/peft/lora.js'
import type { Tensor } from '../lib/tensor/tensor.js'

interface Case {
  name: string
  /** Folder that transformers loads. */
  model: string
  adapter?: string
  /** Rows that transformers' embedding gets before the adapter is loaded. */
  resize?: number
  /** Load with AutoPeftModel, which takes the base's folder and the number of rows from the adapter's files. */
  auto?: boolean
  inputIds: number[][]
  /** What quantune computed. */
  logits: Float32Array
}

const [python, goldens = 'test/fixtures/goldens'] = process.argv.slice(2)
if (!python) throw new Error('usage: node dist/scripts/check-peft.js PYTHON [GOLDENS]')
const options = { device: 'cpu', dtype: 'float32' } as const
const folder = await mkdtemp(join(tmpdir(), 'quantune-peft-'))

async function logitsOf(model: Model, inputIds: number[][], columns: number): Promise<Float32Array> {
  const result = model.forward(Batch.fromPadded({ inputIds }), { outputRows: 'all' })
  const logits = result.logits()
  const all = (await logits.data()) as Float32Array
  const width = logits.shape[1]!
  return Float32Array.from(
    { length: (all.length / width) * columns },
    (_, i) => all[Math.floor(i / columns) * width + (i % columns)]!,
  )
}

/** Adapters of every kind that quantune makes: their B is not zero, so that they say something. */
async function plainCases(base: string): Promise<Case[]> {
  const model = await Model.fromPretrained(join(goldens, 'models', base), options)
  const inputIds = [
    [1, 5, 9, 200, 33, 17],
    [3, 3, 8, 1, 90, 41],
  ]
  const common: LoraConfig = { r: 3, loraAlpha: 2, initLoraWeights: false, seed: 5 }
  const configs: Record<string, LoraConfig> = {
    linear: { ...common, targetModules: 'all-linear', useRslora: true },
    some: { ...common, layersToTransform: [1], rankPattern: base === 'gpt2' ? { c_attn: 5 } : { q_proj: 5 } },
    head: { ...common, modulesToSave: ['lm_head'] },
    biases: { ...common, bias: 'all' },
  }
  const cases: Case[] = []
  for (const [name, config] of Object.entries(configs)) {
    if (name === 'head' && base !== 'llama') continue
    model.addAdapter(config, name)
    model.setAdapter(name)
    for (const parameter of model.resolveAdapter(name)!.parameters().values()) {
      const values = await parameter.data()
      // Copies of the base's parameters (biases, the head) must differ from it, as after training.
      if (!parameter.name.includes('.lora_')) parameter.value.write(values.map((value, i) => value + 0.05 * Math.sin(i)))
    }
    const adapter = join(folder, base, name)
    await model.saveAdapter(adapter)
    const columns = model.network.shape.vocabSize
    const logits = await logitsOf(model, inputIds, columns)
    cases.push({ name: `${base}: adapter ${name}`, model: resolve(goldens, 'models', base), adapter, inputIds, logits })
    const merged = join(folder, base, `${name}-merged`)
    await model.savePretrained(merged, { mergeAdapter: true, maxShardSize: '100KB' })
    cases.push({ name: `${base}: merged ${name}`, model: merged, inputIds, logits })
  }
  await model.dispose()
  return cases
}

/** New tokens on a model, with a tokenizer that knows them; predictable ones beside a token of the vocabulary. */
async function tokenCases(tied: boolean, predictable = false): Promise<Case[]> {
  const tokenizer = await Tokenizer.fromFolder(join(goldens, 'chat/chatml/tokenizer'))
  const source = await Model.fromPretrained(join(goldens, 'models/llama_tied'), options)
  const rows = tokenizer.vocabSize
  const config = { ...source.config, vocab_size: rows, tie_word_embeddings: tied }
  await source.dispose()
  const name = `tokens-${tied ? 'tied' : 'untied'}${predictable ? '-predictable' : ''}`
  const base = join(folder, name, 'base')
  await using drawn = await Model.fromConfig(config, { ...options, tokenizer, seed: 11 })
  await drawn.savePretrained(base)
  const model = await Model.fromPretrained(base, options)
  model.addAdapter({ r: 3, initLoraWeights: false, targetModules: 'all-linear' })
  const known = predictable ? [model.tokenizer.convertIdsToTokens(7)!] : []
  const tokens = model.addTokens(['<one>', '<two>', '<three>', ...known], { initFrom: 'mean', predictable })
  // Rows that differ from each other, as after training.
  for (const owner of [undefined, null]) {
    const { rows: embedded, head } = model.resolveAdapter(owner)!.tokenRows!
    const write = (tensor: Tensor, phase: number) =>
      tensor.write(Float32Array.from({ length: tensor.size }, (_, i) => 0.05 * Math.sin(i + phase)))
    write(embedded.value, 0)
    if (head && head.rows !== embedded) write(head.rows.value, 1)
  }
  const inputIds = [
    [1, tokens[0]!, 7, tokens[2]!, 12],
    [tokens[1]!, 4, 4, tokens[0]!, 90],
  ]
  const columns = predictable ? rows + 3 : rows
  const logits = await logitsOf(model, inputIds, columns)
  const adapter = join(folder, name, 'adapter')
  await model.saveAdapter(adapter)
  const merged = join(folder, name, 'merged')
  await model.savePretrained(merged, { mergeAdapter: true })
  model.setAdapter(null)
  const rowsOnly = join(folder, name, 'rows')
  await model.saveAdapter(rowsOnly, model.resolveAdapter(null)!.name)
  const bare = await logitsOf(model, inputIds, columns)
  await model.dispose()
  return [
    { name: `${name}: rows alone`, model: base, adapter: rowsOnly, resize: rows + 3, inputIds, logits: bare },
    { name: `${name}: adapter`, model: base, adapter, resize: rows + 3, inputIds, logits },
    { name: `${name}: adapter, by AutoPeftModel`, model: base, adapter, auto: true, inputIds, logits },
    { name: `${name}: merged`, model: merged, inputIds, logits },
  ]
}

try {
  const cases = [
    ...(await plainCases('llama')),
    ...(await plainCases('llama_tied')),
    ...(await plainCases('gpt2')),
    ...(await plainCases('qwen2')),
    ...(await tokenCases(true)),
    ...(await tokenCases(false)),
    ...(await tokenCases(true, true)),
    ...(await tokenCases(false, true)),
  ]
  await mkdir(folder, { recursive: true })
  const described = []
  for (const [i, { inputIds, logits, ...rest }] of cases.entries()) {
    await writeFile(join(folder, `${i}.f32`), logits)
    described.push({ ...rest, input_ids: inputIds, logits: `${i}.f32`, columns: logits.length / inputIds.flat().length })
  }
  await writeFile(join(folder, 'cases.json'), JSON.stringify(described))
  const { status } = spawnSync(python, [resolve('scripts/check-peft.py'), folder], { stdio: 'inherit' })
  process.exitCode = status ?? 1
} finally {
  await rm(folder, { recursive: true })
}
