import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { TrainingLog } from '../../../lib/training/log.js'

t.test('a resumed log drops what came after the checkpoint, and a line that was cut off', async (t) => {
  const dir = t.testdir()
  const log = await TrainingLog.open(dir, null)
  for (const step of [1, 2, 3]) await log.append({ step, loss: 4 - step })
  writeFileSync(log.path, `${readFileSync(log.path, 'utf8')}{"step":4,"lo`)
  const resumed = await TrainingLog.open(dir, 2)
  await resumed.append({ step: 3, loss: 9 })
  const lines = readFileSync(log.path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.same(lines, [
    { step: 1, loss: 3 },
    { step: 2, loss: 2 },
    { step: 3, loss: 9 },
  ])
})

t.test('a new training puts an earlier log aside', async (t) => {
  const dir = t.testdir({ 'log.jsonl': '{"step":1}\n' })
  await TrainingLog.open(dir, null)
  t.equal(readFileSync(join(dir, 'log.jsonl'), 'utf8'), '')
  t.equal(readFileSync(join(dir, 'log.previous.jsonl'), 'utf8'), '{"step":1}\n')
})

t.test('an unwritable folder is ERR_IO', async (t) => {
  const dir = t.testdir({ file: '' })
  await t.rejects(TrainingLog.open(join(dir, 'file', 'output'), null), { code: 'ERR_IO' })
})
