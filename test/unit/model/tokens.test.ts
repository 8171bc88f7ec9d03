import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden, logitsOf, readGolden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const

t.test("PEFT's adapter with new tokens on a tied model", async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama_tied'), options)
  await model.loadAdapter(golden('tokens/llama_tied/adapter'))
  const { ids } = await readGolden('tokens/llama_tied/case.safetensors', 'input_ids')
  const { values } = await readGolden('tokens/llama_tied/case.safetensors', 'logits')
  t.ok(
    ids.flat().some((id) => id >= 256),
    'new tokens are read',
  )
  t.ok(deviation(await logitsOf(model, ids), values) < 2e-5)

  await model.saveAdapter(join(folder, 'adapter'))
  const theirs = await readSafetensorsHeader(golden('tokens/llama_tied/adapter/adapter_model.safetensors'))
  const ours = await readSafetensorsHeader(join(folder, 'adapter/adapter_model.safetensors'))
  const names = [...theirs.entries.keys()].filter((name) => !name.includes('base_layer'))
  t.same([...ours.entries.keys()].sort(), names.sort(), "PEFT's tensors, but for the base's own table")
  await using again = await Model.fromPretrained(golden('models/llama_tied'), options)
  await again.loadAdapter(join(folder, 'adapter'))
  t.equal(deviation(await logitsOf(again, ids), await logitsOf(model, ids)), 0)

  await model.savePretrained(join(folder, 'merged'), { mergeAdapter: true })
  await using merged = await Model.fromPretrained(join(folder, 'merged'), options)
  t.equal(merged.config.tie_word_embeddings, false)
  t.equal(merged.config.vocab_size, 259)
  t.same(merged.generationConfig.suppress_tokens, [256, 257, 258])
  const logits = await logitsOf(merged, ids)
  const old = Float32Array.from({ length: values.length }, (_, i) => logits[Math.floor(i / 256) * 259 + (i % 256)]!)
  t.ok(deviation(old, values) < 2e-5, 'the old vocabulary has the same logits')
  t.equal(logits[256], 0, 'new tokens have a zero row in the head')
})

t.test('another table than the base has', async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), options)
  await t.rejects(model.loadAdapter(golden('tokens/llama_tied/adapter')), { code: 'ERR_ADAPTER_MISMATCH' })
})

t.test('addTokens', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
  const config = {
    ...JSON.parse(await readFile(golden('models/llama_tied/config.json'), 'utf8')),
    vocab_size: tokenizer.vocabSize + 1,
  }
  await using model = await Model.fromConfig(config, { ...options, tokenizer, seed: 3 })
  model.addAdapter({ r: 2 }, 'before')
  const rows = model.network.shape.vocabSize
  const ids = model.addTokens(['<one>', '<two>', '<three>'])
  t.same(ids, [rows - 1, rows, rows + 1], 'the padded row first, then new ones')
  t.same(model.generationConfig.suppress_tokens, [rows - 1], 'the padded row has logits')
  t.same(model.addTokens(['<two>']), [rows])
  model.addAdapter({ r: 2 }, 'after')
  const table = await model.parameters().get('model.embed_tokens.weight')!.data()
  const width = model.network.shape.hiddenSize
  const mean = Float32Array.from({ length: width }, (_, k) => {
    let sum = 0
    for (let row = 0; row < rows; row++) sum += table[row * width + k]!
    return sum / rows
  })
  for (const name of ['before', 'after', null]) {
    const adapter = model.resolveAdapter(name)!
    t.same(adapter.tokenRows!.tokenIds, ids)
    t.equal(adapter.tokenRows!.rows.requiresGrad, true)
    const values = await adapter.tokenRows!.rows.data()
    t.ok(deviation(values, [...mean, ...mean, ...mean]) < 1e-6, `mean row for ${name}`)
  }
  t.same(
    model.trainableParameters(null).map((p) => p.shape),
    [[3, width]],
    'embedding-only training',
  )
  t.ok((await logitsOf(model, [ids], null)).every(Number.isFinite), 'the bare base reads them')
  t.same(model.tokenizer.encode('<two>', { addSpecialTokens: false }), [rows])

  await model.saveAdapter(join(folder, 'after'), 'after')
  const saved = JSON.parse(await readFile(join(folder, 'after', 'adapter_config.json'), 'utf8'))
  t.same(saved.trainable_token_indices, ids)
  await using fresh = await Model.fromConfig(config, {
    ...options,
    tokenizer: await Tokenizer.fromFolder(golden('chat/chatml/tokenizer')),
    seed: 3,
  })
  await fresh.loadAdapter(join(folder, 'after'))
  t.same(fresh.tokenizer.encode('<three>', { addSpecialTokens: false }), [rows + 1], 'the tokens come with the adapter')
  t.equal(deviation(await logitsOf(fresh, [ids]), await logitsOf(model, [ids], 'after')), 0)
  t.same(fresh.generationConfig.suppress_tokens, [rows - 1], 'and are never generated')

  await model.savePretrained(join(folder, 'base'))
  await using base = await Model.fromPretrained(join(folder, 'base'), options)
  t.equal(base.config.vocab_size, rows + 2)
  t.same(base.generationConfig.suppress_tokens, ids)
  t.ok(
    deviation(
      await base
        .parameters()
        .get('lm_head.weight')!
        .data()
        .then((d) => d.subarray((rows - 1) * width)),
      new Float32Array(3 * width),
    ) === 0,
  )
  t.throws(() => model.addTokens([]), { code: 'ERR_INVALID_ARGUMENT' })
  t.throws(() => model.addTokens(['x'], { predictable: true as false }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /predictable/,
  })
  await using tokenless = await Model.fromPretrained(golden('models/llama'), options)
  t.throws(() => tokenless.addTokens(['x']), { code: 'ERR_INVALID_ARGUMENT', message: /no tokenizer/ })
})

t.test('rows of tokens that a tied head predicts', async (t) => {
  const tokenizer = () => Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
  const { vocabSize } = await tokenizer()
  const adapter = join(folder, 'trained-row')
  const make = async (base: string, withTokenizer = true) => {
    const config = JSON.parse(await readFile(golden(`models/${base}/config.json`), 'utf8'))
    const own = withTokenizer ? { tokenizer: await tokenizer() } : {}
    return Model.fromConfig({ ...config, num_hidden_layers: 2, vocab_size: vocabSize }, { ...options, ...own })
  }
  await using untied = await make('llama')
  const [known] = untied.tokenizer.encode('a', { addSpecialTokens: false })
  const token = untied.tokenizer.convertIdsToTokens(known!)!
  untied.addAdapter({ r: 2 })
  t.same(untied.addTokens([token]), [known], 'a head of its own keeps its row')
  await untied.saveAdapter(adapter)

  await using tied = await make('llama_tied')
  t.throws(() => tied.addTokens([token]), { code: 'ERR_INVALID_ARGUMENT', message: /is a token already.*tie_word_embeddings/ })
  const refused = { code: 'ERR_ADAPTER_MISMATCH', message: /tie_word_embeddings/, details: { tokenId: known } }
  await t.rejects(tied.loadAdapter(adapter), refused, 'PEFT would change the head too')
  await using tokenless = await make('llama_tied', false)
  await t.rejects(tokenless.loadAdapter(adapter), refused)
  t.same([...tied.adapters, ...tokenless.adapters], [])
  await using other = await make('llama')
  await other.loadAdapter(adapter)
  t.equal(other.generationConfig.suppress_tokens, undefined, 'it is still generated')
})

t.test('rows without another adapter: embedding-only training', async (t) => {
  for (const base of ['llama_tied', 'llama']) {
    const tokenizer = await Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
    const config = JSON.parse(await readFile(golden(`models/${base}/config.json`), 'utf8'))
    const make = async () => {
      const own = await Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
      return Model.fromConfig({ ...config, vocab_size: tokenizer.vocabSize }, { ...options, tokenizer: own })
    }
    await using model = await make()
    const ids = model.addTokens(['<one>', '<two>'])
    const { rows } = model.resolveAdapter(null)!.tokenRows!
    rows.value.write(Float32Array.from({ length: rows.value.size }, (_, i) => Math.sin(i)))
    const target = join(folder, `only-${base}`)
    await model.saveAdapter(target, 'new-tokens')
    const { entries } = await readSafetensorsHeader(join(target, 'adapter_model.safetensors'))
    const names = ['base_model.model.model.embed_tokens.trainable_tokens_delta']
    if (base === 'llama_tied') names.unshift('base_model.model.lm_head.trainable_tokens_delta')
    t.same([...entries.keys()], names)

    await using fresh = await make()
    await fresh.loadAdapter(target, { name: 'tokens', trainable: true })
    t.same(fresh.adapters, ['tokens'])
    t.equal(deviation(await logitsOf(fresh, [ids], 'tokens'), await logitsOf(model, [ids], null)), 0)
    t.equal(fresh.trainableParameters().length, 1)
    t.same(fresh.addTokens(['<three>']), [tokenizer.vocabSize + 2], 'every adapter gets the new row')
    t.same(fresh.resolveAdapter('tokens')!.tokenRows!.tokenIds, [...ids, tokenizer.vocabSize + 2])
    const stored = join(target, 'adapter_config.json')
    const json = JSON.parse(await readFile(stored, 'utf8'))
    await writeFile(stored, JSON.stringify({ ...json, token_indices: [] }))
    await t.rejects(fresh.loadAdapter(target, { name: 'none' }), { code: 'ERR_CORRUPT_FILE', message: /token_indices/ })
  }
})
