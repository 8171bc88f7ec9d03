import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Model } from '../../../lib/model/model.js'
import { compile } from '../../support/compile.js'
import { golden, logitsOf } from './goldens.js'

const options = { device: 'cpu', dtype: 'float32' } as const
const ids = [[4, 8, 15, 16, 23, 42]]
const isRoot = process.getuid?.() === 0

async function logitsIn(folder: string): Promise<Float32Array> {
  await using model = await Model.fromPretrained(folder, options)
  return logitsOf(model, ids)
}

t.test('kill -9 at any moment leaves the old model or the new one', async (t) => {
  const programs = 'test/unit/model/programs'
  const program = join(compile('save-forever', ['lib', programs]), programs, 'save-forever.js')
  const folder = join(t.testdir(), 'model')
  const sources = [golden('models/llama'), golden('models/qwen2')]
  const known = await Promise.all(sources.map(logitsIn))
  for (const wait of [3, 40, 110]) {
    const child = spawn(process.execPath, [program, folder, ...sources], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(child.stdout, 'data')
    writeFileSync(join(folder, 'notes.txt'), 'mine')
    await new Promise((resolve) => setTimeout(resolve, wait))
    child.kill('SIGKILL')
    t.equal((await once(child, 'exit'))[1], 'SIGKILL')
    const logits = await logitsIn(folder)
    const which = known.findIndex((own) => own.every((value, i) => value === logits[i]))
    t.ok(which >= 0, `after ${wait} ms: model ${which}`)
  }
  await using model = await Model.fromPretrained(sources[0]!, options)
  await model.savePretrained(folder)
  t.same(readdirSync(join(folder, '..')), ['model'], 'the next save tidies up')
  t.same(readdirSync(folder).sort(), ['config.json', 'generation_config.json', 'model.safetensors', 'notes.txt'])
  t.equal(readFileSync(join(folder, 'notes.txt'), 'utf8'), 'mine')
})

t.test('a process died between the two renames', async (t) => {
  const folder = join(t.testdir(), 'model')
  await using model = await Model.fromPretrained(golden('models/llama'), options)
  await model.savePretrained(folder, { maxShardSize: '100KB' })
  mkdirSync(join(folder, 'logs'))
  renameSync(folder, join(folder, '../.model.2147483646-0123abcd.old'))
  mkdirSync(join(folder, '../.model.2147483646-89abcdef.new'))
  t.same(await logitsIn(folder), await logitsOf(model, ids), 'the old model is found')
  t.same(readdirSync(join(folder, '..')), ['model'])

  // And after the second, before what was replaced was deleted.
  mkdirSync(join(folder, '../.model.2147483646-0123abcd.old/notes'), { recursive: true })
  writeFileSync(join(folder, '../.model.2147483646-0123abcd.old/model.safetensors'), '')
  await model.savePretrained(folder)
  t.same(readdirSync(join(folder, '..')), ['model'])
  t.same(readdirSync(folder).sort(), ['config.json', 'generation_config.json', 'logs', 'model.safetensors', 'notes'])
})

t.test('what stands in the way', async (t) => {
  const dir = t.testdir({ file: 'a file', empty: {}, mine: { 'model.safetensors': 'other', 'tokenizer.json': '{}' } })
  await using model = await Model.fromPretrained(golden('models/llama'), options)
  await t.rejects(model.savePretrained(join(dir, 'file')), { code: 'ERR_IO', message: /file is in the way/ })
  t.equal(readFileSync(join(dir, 'file'), 'utf8'), 'a file')
  chmodSync(join(dir, 'empty'), 0o700)
  await model.savePretrained(join(dir, 'empty'))
  t.equal(statSync(join(dir, 'empty')).mode & 0o777, 0o700, 'the folder keeps its mode')
  const aborted = AbortSignal.abort(new Error('enough'))
  await t.rejects(model.savePretrained(join(dir, 'mine'), { signal: aborted }), { message: 'enough' })
  t.equal(readFileSync(join(dir, 'mine/model.safetensors'), 'utf8'), 'other')
  t.same(readdirSync(dir).sort(), ['empty', 'file', 'mine'], 'nothing is left beside it')
})

t.test('an unwritable folder', { skip: isRoot && 'root may write everywhere' }, async (t) => {
  const dir = t.testdir({ parent: { model: {} } })
  const folder = join(dir, 'parent/model')
  await using model = await Model.fromPretrained(golden('models/llama'), options)
  chmodSync(join(dir, 'parent'), 0o500)
  t.teardown(() => chmodSync(join(dir, 'parent'), 0o700))
  await model.savePretrained(folder)
  await model.savePretrained(folder, { maxShardSize: '100KB' })
  t.notOk(readdirSync(folder).includes('model.safetensors'), 'inside it what was there goes too')
  t.same(await logitsIn(folder), await logitsOf(model, ids))
  await t.rejects(model.savePretrained(join(dir, 'parent/other')), { code: 'ERR_IO', message: /permission denied/ })
  chmodSync(folder, 0o500)
  await t.rejects(model.savePretrained(folder), { code: 'ERR_IO', message: /permission denied/ })
  chmodSync(folder, 0o700)
})
