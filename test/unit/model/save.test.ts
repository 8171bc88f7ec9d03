import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { Model } from '../../../lib/model/model.js'
import { bytesOfSize } from '../../../lib/model/save.js'
import { deviation, golden, logitsOf } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const options = { device: 'cpu', dtype: 'float32' } as const
const ids = [[4, 8, 15, 16, 23, 42]]
const llama = await Model.fromPretrained(golden('models/llama'), options)
t.teardown(() => llama.dispose())
const readJson = async (path: string) => JSON.parse(await readFile(path, 'utf8'))

t.test('a plain copy', async (t) => {
  const target = join(folder, 'plain')
  await llama.savePretrained(target)
  t.same((await readdir(target)).sort(), ['config.json', 'generation_config.json', 'model.safetensors'])
  t.same(await readJson(join(target, 'config.json')), llama.config)
  t.same(await readJson(join(target, 'generation_config.json')), llama.generationConfig)
  await using copy = await Model.fromPretrained(target, options)
  t.equal(deviation(await logitsOf(copy, ids), await logitsOf(llama, ids)), 0)
})

t.test('dtype and shards; what an earlier save left goes', async (t) => {
  const target = join(folder, 'sharded')
  await llama.savePretrained(target, { maxShardSize: '100KB' })
  const shards = (await readdir(target)).filter((name) => /^model-/.test(name))
  t.ok(shards.length > 3)
  for (const shard of shards) t.ok((await stat(join(target, shard))).size < 110_000, shard)
  await llama.savePretrained(target, { dtype: 'bfloat16' })
  t.same(
    (await readdir(target)).filter((name) => /^model/.test(name)),
    ['model.safetensors'],
  )
  t.equal((await readJson(join(target, 'config.json'))).dtype, 'bfloat16')
  const { entries } = await readSafetensorsHeader(join(target, 'model.safetensors'))
  t.ok([...entries.values()].every(({ dtype }) => dtype === 'BF16'))
  await using half = await Model.fromPretrained(target, options)
  t.equal(half.parameters().get('lm_head.weight')!.dtype, 'bfloat16', 'frozen weights keep their type')
  t.equal(half.parameters().get('model.norm.weight')!.dtype, 'float32', 'small ones do not')
  const difference = deviation(await logitsOf(half, ids), await logitsOf(llama, ids))
  t.ok(difference > 0 && difference < 0.05)
  await half.savePretrained(join(folder, 'again'))
  t.ok((await readFile(join(folder, 'again', 'model.safetensors'))).equals(await readFile(join(target, 'model.safetensors'))))
  await llama.savePretrained(target, { maxShardSize: 150_000 })
  await using sharded = await Model.fromPretrained(target, options)
  t.equal(deviation(await logitsOf(sharded, ids), await logitsOf(llama, ids)), 0, 'the shards are read, not the old file')
})

t.test('trained parameters are saved as they are', async (t) => {
  await using trained = await Model.fromPretrained(golden('models/llama'), { ...options, trainable: true })
  const norm = trained.parameters().get('model.norm.weight')!
  norm.value.write(new Float32Array(64).fill(0.5))
  await trained.savePretrained(join(folder, 'trained'))
  await using again = await Model.fromPretrained(join(folder, 'trained'), options)
  t.equal(deviation(await logitsOf(again, ids), await logitsOf(trained, ids)), 0)
})

t.test('tokenizer and chat template', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(golden('chat/llama3/tokenizer'))
  const config = { ...llama.config, vocab_size: tokenizer.vocabSize }
  await using model = await Model.fromConfig(config, { ...options, tokenizer, generationConfig: { temperature: 0.5 } })
  const target = join(folder, 'tokenizer')
  await model.savePretrained(target)
  await using again = await Model.fromPretrained(target, options)
  const chat = [{ role: 'user', content: 'Who?' }]
  t.same(again.tokenizer.applyChatTemplate(chat).inputIds, tokenizer.applyChatTemplate(chat).inputIds)
  t.equal(again.generationConfig.temperature, 0.5)
})

t.test('refusals', async (t) => {
  const refused = { code: 'ERR_INVALID_ARGUMENT' }
  await t.rejects(llama.savePretrained(folder, { mergeAdapter: 'none' }), refused)
  await t.rejects(llama.savePretrained(folder, { mergeAdapter: true }), refused)
  await t.rejects(llama.savePretrained(folder, { maxShardSize: 'huge' }), refused)
  await t.rejects(llama.savePretrained(folder, { merge: true } as never), { ...refused, message: /mergeAdapter/ })
  await using fourBit = await Model.fromPretrained(golden('models/llama_bnb_nf4'), options)
  await t.rejects(fourBit.savePretrained(folder, { base: 'original' }), { ...refused, message: /'dequantized'/ })
  await fourBit.savePretrained(join(folder, 'dequantized'))
  await using dense = await Model.fromPretrained(join(folder, 'dequantized'), options)
  t.ok(deviation(await logitsOf(dense, ids), await logitsOf(fourBit, ids)) < 2e-5)
  t.equal(dense.config.quantization_config, undefined)
  const file = join(folder, 'file')
  await writeFile(file, '')
  await t.rejects(llama.savePretrained(join(file, 'x')), { code: 'ERR_IO' })
  await t.rejects(llama.saveAdapter(folder), { ...refused, message: /no adapter/ })
  t.equal(bytesOfSize('1.5GB'), 1.5e9)
  t.equal(bytesOfSize('2MiB'), 2 * 2 ** 20)
})
