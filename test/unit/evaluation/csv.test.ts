import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { type EvaluationRow, EvaluationWriter, readEvaluation } from '../../../lib/evaluation/csv.js'

const row = (id: string, answer: string | null): EvaluationRow => ({
  id,
  prompt: 'Question: "x", then\na new line',
  answers: ['a, "b"', '?'],
  answer,
  response: '```json\n{"answer": "é 🦙"}\n```',
  exactMatch: answer === '?',
})

t.test('rows come back as they were, over several sessions', async (t) => {
  const path = join(t.testdir(), 'answers.csv')
  const first = await EvaluationWriter.open(path)
  t.same(first.done, [])
  await first.append([row('1', 'x'), row('2', null)])
  await first.append([])
  await first.close()
  const second = await EvaluationWriter.open(path)
  t.same(second.done, [row('1', 'x'), row('2', null)])
  await second.append([row('3', '?'), row('4', 'null')])
  await second.close()
  t.same(await readEvaluation(path), [row('1', 'x'), row('2', null), row('3', '?'), row('4', 'null')])
  t.equal((await readFile(path, 'utf8')).match(/Exact Match/g)?.length, 1)
})

t.test('a row that was cut off anywhere is written again', async (t) => {
  const path = join(t.testdir(), 'answers.csv')
  const writer = await EvaluationWriter.open(path)
  await writer.append([row('1', 'x')])
  const complete = await readFile(path)
  await writer.append([row('2', '?')])
  await writer.close()
  const whole = await readFile(path)
  for (let length = complete.length; length < whole.length; length++) {
    await writeFile(path, whole.subarray(0, length))
    t.equal((await readEvaluation(path)).length, 1)
    const again = await EvaluationWriter.open(path)
    await again.append([row('2', '?')])
    await again.close()
    if (!(await readFile(path)).equals(whole)) t.fail(`cut at ${length}`)
  }
})

t.test('other files are refused', async (t) => {
  const folder = t.testdir({ 'other.csv': 'a,b\n1,2\n' })
  await t.rejects(EvaluationWriter.open(join(folder, 'other.csv')), { code: 'ERR_CORRUPT_FILE' })
  await t.rejects(readEvaluation(join(folder, 'missing.csv')), { code: 'ERR_IO' })
  await mkdir(join(folder, 'sub'))
  await t.rejects(EvaluationWriter.open(join(folder, 'sub')), { code: 'ERR_IO' })
  const path = join(folder, 'answers.csv')
  await (await EvaluationWriter.open(path)).close()
  await appendFile(path, 'only,three,columns\n')
  await t.rejects(readEvaluation(path), { code: 'ERR_CORRUPT_FILE' })
})
