import { readFileSync } from 'node:fs'
import t from 'tap'
import { trainBpe } from '../../../examples/tiny/bpe.js'
import { makeChat } from '../../../examples/tiny/corpus.js'
import { DEV, generate, TRAIN } from '../../../examples/tiny/generate-data.js'
import { Random } from '../../../examples/tiny/random.js'
import { writeTokenizer } from '../../../examples/tiny/train-tokenizer.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'

const data = new URL('../../../examples/tiny/data/', import.meta.url).pathname
const model = new URL('../../../examples/tiny/model/', import.meta.url).pathname

t.test('the bundled data set is what its generator makes', async (t) => {
  const train = generate(TRAIN.seed, TRAIN.contexts, TRAIN.title, new Set())
  const dev = generate(DEV.seed, DEV.contexts, DEV.title, train.facts)
  for (const [name, { squad }] of Object.entries({ train, dev })) {
    t.ok(readFileSync(`${data}${name}.json`, 'utf8') === `${JSON.stringify(squad)}\n`, name)
    const paragraphs = squad.data.flatMap((article) => article.paragraphs)
    const questions = paragraphs.flatMap(({ context, qas }) => qas.map((qa) => ({ context, ...qa })))
    const none = questions.filter(({ is_impossible }) => is_impossible)
    t.ok(Math.abs(none.length / questions.length - 1 / 3) < 0.03, 'a third has no answer')
    t.ok(none.every(({ answers }) => answers.length === 0))
    t.ok(paragraphs.every(({ qas }) => qas.length >= 5 && qas.length <= 8))
    const spans = questions.flatMap(({ context, answers }) => answers.map((answer) => ({ context, ...answer })))
    t.ok(
      spans.every(({ context, text, answer_start }) => context.startsWith(text, answer_start) && text.split(' ').length <= 4),
    )
    t.equal(new Set(questions.map(({ id }) => id)).size, questions.length)
  }
  t.ok(dev.squad.data.flatMap((article) => article.paragraphs.flatMap(({ qas }) => qas)).length >= 200)
  t.notOk(
    [...dev.facts].some((fact) => train.facts.has(fact)),
    'no fact of the test is told in training',
  )
})

t.test('pairs are merged by frequency, ties by text', async (t) => {
  const { vocab, merges } = trainBpe(['ab ab abc', 'bc bc bc xy 12 12'], 300)
  t.same(merges, [
    ['b', 'c'],
    ['1', '2'],
    ['a', 'b'],
    ['Ġ', 'bc'],
  ])
  t.equal(vocab.bc, 256)
  t.equal(Object.keys(vocab).length, 260, 'stops when no pair occurs twice')
})

t.test('the bundled tokenizer is what its training makes', async (t) => {
  const folder = t.testdir()
  writeTokenizer(folder)
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    t.ok(readFileSync(`${folder}/${name}`, 'utf8') === readFileSync(`${model}${name}`, 'utf8'), name)
  }
  const tokenizer = await Tokenizer.fromFolder(folder)
  const random = new Random(5)
  for (let i = 0; i < 50; i++) {
    const chat = tokenizer.applyChatTemplate(makeChat(random, new Set()))
    t.equal(tokenizer.decode(chat.inputIds), chat.text)
    t.ok(chat.assistantMask.includes(1))
  }
})
