import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden, logitsOf, readGolden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const

/** The first 256 columns. */
const oldVocabulary = (logits: Float32Array, width: number) =>
  Float32Array.from({ length: (logits.length / width) * 256 }, (_, i) => logits[Math.floor(i / 256) * width + (i % 256)]!)

t.test("PEFT's adapter with new tokens on a tied model", async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama_tied'), options)
  await model.loadAdapter(golden('tokens/llama_tied/adapter'))
  const { ids } = await readGolden('tokens/llama_tied/case.safetensors', 'input_ids')
  const { values } = await readGolden('tokens/llama_tied/case.safetensors', 'logits')
  t.ok(
    ids.flat().some((id) => id >= 256),
    'new tokens are read',
  )
  const all = await logitsOf(model, ids)
  t.ok(deviation(oldVocabulary(all, 259), values) < 2e-5)
  t.ok(all[258] !== 0 && Number.isFinite(all[258]), "a tied head predicts them, by the embedding's rows")

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
  t.equal(merged.config.tie_word_embeddings, true)
  t.equal(merged.config.vocab_size, 259)
  t.equal(merged.generationConfig.suppress_tokens, undefined)
  t.ok(deviation(await logitsOf(merged, ids), await logitsOf(model, ids)) < 2e-5, 'new tokens are predicted too')

  // The same adapter with tokens that are only read.
  const readOnly = { suppress_tokens: [256, 257, 258] }
  await writeFile(join(folder, 'adapter/generation_config.json'), JSON.stringify(readOnly))
  await using reading = await Model.fromPretrained(golden('models/llama_tied'), options)
  await reading.loadAdapter(join(folder, 'adapter'))
  t.ok(deviation(await logitsOf(reading, ids), values) < 2e-5, 'no logits of their own')
  await reading.savePretrained(join(folder, 'merged'), { mergeAdapter: true })
  await using untied = await Model.fromPretrained(join(folder, 'merged'), options)
  t.equal(untied.config.tie_word_embeddings, false)
  t.same(untied.generationConfig.suppress_tokens, [256, 257, 258])
  const logits = await logitsOf(untied, ids)
  t.ok(deviation(oldVocabulary(logits, 259), values) < 2e-5, 'the old vocabulary has the same logits')
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
  t.throws(() => tied.addTokens([token]), { code: 'ERR_INVALID_ARGUMENT', message: /predictable: true/ })
  tied.addAdapter({ r: 2 })
  const before = await logitsOf(tied, [[1, known!, 5]])
  t.same(tied.addTokens([token], { predictable: true }), [known])
  t.equal(tied.generationConfig.suppress_tokens, undefined)
  const started = await logitsOf(tied, [[1, known!, 5]])
  t.ok(deviation(started, before) < 1e-6, "it starts from the base's row")
  t.throws(
    () => tied.addTokens([token]),
    { code: 'ERR_INVALID_ARGUMENT', message: /predictable: true/ },
    'and stays predictable',
  )
  const { rows } = tied.resolveAdapter('default')!.tokenRows!
  rows.value.write(Float32Array.from({ length: rows.value.size }, (_, i) => Math.sin(i)))
  const trained = await logitsOf(tied, [[1, known!, 5]])
  t.ok(Math.abs(trained[known!]! - before[known!]!) > 1e-3, "the head's row changes with it")
  await tied.saveAdapter(adapter)
  for (const withTokenizer of [true, false]) {
    await using fresh = await make('llama_tied', withTokenizer)
    await fresh.loadAdapter(adapter)
    t.equal(deviation(await logitsOf(fresh, [[1, known!, 5]]), trained), 0)
  }
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

t.test('predictable tokens', async (t) => {
  const tokenizer = () => Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
  const { vocabSize } = await tokenizer()
  for (const base of ['llama_tied', 'llama']) {
    const config = JSON.parse(await readFile(golden(`models/${base}/config.json`), 'utf8'))
    const make = async () =>
      Model.fromConfig({ ...config, vocab_size: vocabSize }, { ...options, tokenizer: await tokenizer() })
    await using model = await make()
    model.addAdapter({ r: 2, targetModules: 'all-linear' })
    const [known] = model.tokenizer.encode('a', { addSpecialTokens: false })
    const read = model.addTokens(['<think>'])
    const ids = model.addTokens(['<yes>', model.tokenizer.convertIdsToTokens(known!)!], { predictable: true })
    t.same([read, ids], [[vocabSize], [vocabSize + 1, known]])
    const width = vocabSize + 2
    const { tokenRows } = model.resolveAdapter(undefined)!
    for (const { value } of new Set([tokenRows!.rows, tokenRows!.head!.rows]))
      value.write(Float32Array.from({ length: value.size }, (_, i) => 0.3 * Math.sin(3 * i)))
    const input = [[1, ids[0]!, 7, known!, read[0]!, 12]]
    const logits = await logitsOf(model, input)
    t.equal(logits.length, 6 * width)
    t.equal(logits[vocabSize], Number.NEGATIVE_INFINITY, 'a token that is only read is none that may come')

    await t.test(`${base}: saved`, async (t) => {
      const adapter = join(folder, `predictable-${base}`)
      await model.saveAdapter(adapter)
      await using fresh = await make()
      await fresh.loadAdapter(adapter)
      t.same(await logitsOf(fresh, input), logits)
      t.same(fresh.tokenizer.encode('<yes>', { addSpecialTokens: false }), [vocabSize + 1])
      t.same(
        fresh.resolveAdapter(undefined)!.tokenRows!.head!.tokenIds,
        model.resolveAdapter(undefined)!.tokenRows!.head!.tokenIds,
      )

      await model.savePretrained(`${adapter}-merged`, { mergeAdapter: true })
      await using merged = await Model.fromPretrained(`${adapter}-merged`, options)
      t.equal(merged.config.tie_word_embeddings, false, 'tokens that are only read part head and embedding')
      t.same(merged.generationConfig.suppress_tokens, read)
      const theirs = (await logitsOf(merged, input)).map((value, i) => (i % width === vocabSize ? logits[i]! : value))
      t.ok(deviation(theirs.filter(Number.isFinite), logits.filter(Number.isFinite)) < 2e-5)
    })

    await t.test(`${base}: generated`, async (t) => {
      const { rows, head } = tokenRows!
      const values = await head!.rows.data()
      const place = head!.rows === rows ? rows.shape[0]! - 2 : 0
      const hidden = model.network.shape.hiddenSize
      const options = { maxNewTokens: 3, eosTokenId: [], minNewTokens: 3 }
      // A row against which all others are small: it is the likeliest token, or the least likely one.
      const scaled = (sign: number) => {
        const row = values.slice(place * hidden, (place + 1) * hidden).map((value) => sign * 300 * value)
        head!.rows.value.rows(place, 1).write(row)
        return model.generate({ inputIds: [1, 9, 14] }, options)
      }
      const answers = [await scaled(1), await scaled(-1)]
      t.ok(
        answers.some(({ tokenIds }) => tokenIds[0] === vocabSize + 1),
        'generated by the row in the head',
      )
      t.notOk(
        answers.some(({ tokenIds }) => tokenIds.includes(vocabSize)),
        'what is only read is not',
      )
      head!.rows.value.write(values)
    })

    await t.test(`${base}: bare base and other adapters`, async (t) => {
      const bare = await logitsOf(model, [[1, 7, 12]], null)
      t.equal(bare.length, 3 * width, 'the base has the rows too')
      model.addAdapter({ r: 2 }, 'later')
      t.ok(
        deviation((await logitsOf(model, [[1, 7, 12]], 'later')).filter(Number.isFinite), bare.filter(Number.isFinite)) < 1e-6,
      )
      const message = /head/
      t.throws(() => model.addAdapter({ targetModules: ['lm_head'] }, 'head'), { code: 'ERR_INVALID_ARGUMENT', message })
      t.throws(() => model.addAdapter({ modulesToSave: ['lm_head'] }, 'head'), { code: 'ERR_INVALID_ARGUMENT', message })
      await using adapted = await make()
      adapted.addAdapter({ targetModules: ['lm_head'] })
      t.throws(() => adapted.addTokens(['<yes>'], { predictable: true }), { code: 'ERR_INVALID_ARGUMENT', message })
      t.equal(adapted.tokenizer.convertTokensToIds('<yes>'), null, 'nothing was added')
    })

    await t.test(`${base}: labels`, async (t) => {
      const batch = (label: number) => Batch.fromPadded({ inputIds: [[1, 9]], labels: [[-100, label]] })
      t.throws(() => model.forward(batch(vocabSize)), { code: 'ERR_INVALID_ARGUMENT', message: /predictable: false/ })
      t.throws(() => model.forward(batch(width)), { code: 'ERR_INVALID_ARGUMENT', message: /does not predict/ })
    })
  }
})

t.test('rows train as those of a full model', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
  for (const base of ['llama_tied', 'llama']) {
    const config = JSON.parse(await readFile(golden(`models/${base}/config.json`), 'utf8'))
    await using model = await Model.fromConfig({ ...config, vocab_size: tokenizer.vocabSize }, { ...options, tokenizer })
    const ids = model.addTokens(['<yes>', '<no>', tokenizer.convertIdsToTokens(9)!], { predictable: true })
    const grown = join(folder, `grown-${base}`)
    await model.savePretrained(grown)
    await using full = await Model.fromPretrained(grown, { ...options, trainable: true })
    t.equal(full.config.tie_word_embeddings, base === 'llama_tied')
    const inputIds = [[1, ids[0]!, 7, 9, ids[1]!, ids[0]!, 4]]
    const batch = Batch.fromPadded({ inputIds, labels: inputIds })
    const losses: number[] = []
    for (const trained of [model, full]) {
      const { loss } = trained.forward(batch)
      loss!.backward(0.5)
      losses.push(await loss!.item())
      loss!.dispose()
    }
    t.ok(Math.abs(losses[0]! - losses[1]!) < 1e-5, `losses ${losses}`)
    const width = model.network.shape.hiddenSize
    const { rows, head } = model.resolveAdapter(null)!.tokenRows!
    const pairs = [
      [rows, 'model.embed_tokens.weight'] as const,
      ...(head!.rows === rows ? [] : [[head!.rows, 'lm_head.weight'] as const]),
    ]
    t.equal(pairs.length, base === 'llama' ? 2 : 1)
    for (const [parameter, name] of pairs) {
      const theirs = (await full.parameters().get(name)!.grad())!
      const expected = Float32Array.from(ids.flatMap((id) => [...theirs.subarray(id * width, (id + 1) * width)]))
      t.ok(expected.some((value) => Math.abs(value) > 1e-4))
      t.ok(deviation((await parameter.grad())!, expected) < 1e-5, `${base}: gradients of ${name}`)
    }

    // Beside rows of its own, the base's table can be trained too: what the rows stand in for gets no gradient.
    const table = model.parameters().get(base === 'llama' ? 'lm_head.weight' : 'model.embed_tokens.weight')!
    table.requiresGrad = true
    const { loss } = model.forward(batch)
    loss!.backward(0.5)
    loss!.dispose()
    const theirs = (await full.parameters().get(table.name)!.grad())!
    const others = (values: Float32Array) => values.subarray(0, 9 * width)
    const own = (await table.grad())!
    t.ok(deviation(others(own), others(theirs)) < 1e-5, 'the other rows of the table')
    t.ok(own.subarray(9 * width, 10 * width).every((value) => value === 0))
  }
})
