import { writeFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { Dataset } from '../../../lib/data/dataset.js'

const refused = { name: 'QuantuneError', code: 'ERR_INVALID_ARGUMENT' }

t.test('a JSONL file, whatever its lines end with', async (t) => {
  const path = `${t.testdir()}/data.jsonl`
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.jsonValue()),
      fc.constantFrom('\n', '\r\n', '\n\n', '\n  \n'),
      fc.boolean(),
      fc.boolean(),
      async (values, newline, mark, last) => {
        const text = values.map((value) => JSON.stringify(value)).join(newline) + (last ? newline : '')
        writeFileSync(path, (mark ? '\uFEFF' : '') + text)
        const data = await Dataset.fromJsonl(path)
        const read = await data.toArray()
        return data.length === values.length && JSON.stringify(read) === JSON.stringify(values)
      },
    ),
    { numRuns: 50 },
  )
})

t.test('a line longer than a read, and bytes of a character across two', async (t) => {
  const path = `${t.testdir()}/data.jsonl`
  const long = `${'x'.repeat((1 << 20) - 4)}é😀`
  writeFileSync(path, `${JSON.stringify(long)}\n${JSON.stringify('short')}`)
  const data = await Dataset.fromJsonl(path)
  t.equal(await data.at(1), 'short')
  t.ok((await data.at(0)) === long)
})

t.test('files that are none', async (t) => {
  const path = `${t.testdir()}/data.jsonl`
  await t.rejects(Dataset.fromJsonl(path), { code: 'ERR_IO' })
  writeFileSync(path, '{"a": 1}\n\n{"a": ')
  await t.rejects(Dataset.fromJsonl(path), { code: 'ERR_CORRUPT_FILE', message: /line 3/ })
  writeFileSync(path, '{"a": 1}\n')
  const data = await Dataset.fromJsonl(path)
  writeFileSync(path, '{"a"')
  await t.rejects(async () => data.at(0), { code: 'ERR_CORRUPT_FILE' })
})

t.test('map, filter, select, shuffle', async (t) => {
  const data = Dataset.from([1, 2, 3, 4, 5])
  t.equal(data.map((x, i) => x * 10 + i).at(2), 32)
  t.same(await (await data.filter(async (x) => x % 2 === 1)).toArray(), [1, 3, 5])
  t.same(await data.select([4, 0, 4]).toArray(), [5, 1, 5])
  t.same(await data.shuffle(1).toArray(), await data.shuffle(1).toArray())
  t.same((await data.shuffle(1).toArray()).sort(), [1, 2, 3, 4, 5])
  for (const index of [-1, 5, 0.5]) t.throws(() => data.at(index), refused)
  t.throws(() => data.select([5]), refused)
})

t.test('a split has no overlap and depends on the seed alone', async (t) => {
  const data = Dataset.from(Array.from({ length: 20 }, (_, i) => i))
  const { train, test } = data.trainTestSplit({ testSize: 0.24, seed: 7 })
  t.equal(test.length, 5)
  t.same(
    [...(await train.toArray()), ...(await test.toArray())].sort((a, b) => a - b),
    await data.toArray(),
  )
  t.same(await data.trainTestSplit({ testSize: 5, seed: 7 }).test.toArray(), await test.toArray())
  t.notSame(await data.trainTestSplit({ testSize: 5, seed: 8 }).test.toArray(), await test.toArray())
  for (const testSize of [0, 20, 1.5, -1]) t.throws(() => data.trainTestSplit({ testSize }), refused)
})
