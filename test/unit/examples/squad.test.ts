import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { writeCurve } from '../../../examples/squad/curve.js'
import { readSquad, reasoningTokens, squadFile, toChat } from '../../../examples/squad/data.js'
import { difference, readStrictly } from '../../../examples/squad/peer-answers.js'
import { readPeer, readPeerAnswers, readPeerGenerations } from '../../../examples/squad/peer-files.js'
import { renderTable } from '../../../examples/squad/table.js'
import { extractAnswer, summarize } from '../../../lib/evaluation/index.js'

const SQUAD = {
  version: 'v2.0',
  data: [
    {
      title: 'Normans',
      paragraphs: [
        {
          context: ' The "Normans" came from Normandy. ',
          qas: [
            { id: 'a', question: ' Where from? ', is_impossible: false, answers: [{ text: 'Normandy', answer_start: 26 }] },
            { id: 'b', question: 'When?', is_impossible: true, plausible_answers: [{ text: 'x' }], answers: [] },
          ],
        },
      ],
    },
  ],
}

t.test('SQuAD’s files become chats', async (t) => {
  const folder = t.testdir({ 'dev-v2.0.json': JSON.stringify(SQUAD) })
  t.throws(() => squadFile(folder, 'train'), /train\.json/)
  const [questions] = await readSquad(squadFile(folder, 'dev'))
  t.same(questions, [
    { id: 'a', context: 'The "Normans" came from Normandy.', question: 'Where from?', answers: ['Normandy'] },
    { id: 'b', context: 'The "Normans" came from Normandy.', question: 'When?', answers: ['?'] },
  ])
  const [system, user, assistant] = toChat(questions![0]!, { turns: 'single', reasoning: '<blah>' })
  t.match(system!.content, /^You are a helpful, respectful and honest assistant\./)
  t.match(user!.content, /\nContext: The "Normans" came from Normandy\.\nQuestion: Where from\?\n$/)
  t.equal(assistant!.content, '<blah>```json\n{\n  "answer": "Normandy"\n}\n```')
  t.equal(extractAnswer(assistant!.content as string), 'Normandy')
  const multi = toChat(questions![1]!, { turns: 'multi', reasoning: '' })
  t.same(
    multi.map(({ role }) => role),
    ['system', 'user', 'assistant', 'user', 'assistant'],
  )
  t.equal(multi[2]!.content, 'no')
  t.equal(extractAnswer(multi[4]!.content as string), '?')
})

t.test('reasoning tokens are one repeated or numbered', async (t) => {
  const settings = { turns: 'single', reasoningTokens: 3, numberedTokens: false } as const
  t.same(reasoningTokens(settings), { text: '<blah><blah><blah>', tokens: ['<blah>'] })
  t.same(reasoningTokens({ ...settings, numberedTokens: true }).tokens, ['<blah_0>', '<blah_1>', '<blah_2>'])
  t.same(reasoningTokens({ ...settings, reasoningTokens: 0 }), { text: '', tokens: [] })
})

t.test('the loss curve shows training and validation', async (t) => {
  const folder = t.testdir()
  const log = [
    { step: 1, loss: 2 },
    { step: 5, loss: 1 },
    { step: 5, eval_loss: 1.5 },
  ]
  await writeFile(join(folder, 'log.jsonl'), log.map((line) => `${JSON.stringify(line)}\n`).join(''))
  await writeCurve(join(folder, 'log.jsonl'), join(folder, 'curve.svg'), 'a < b')
  const svg = await readFile(join(folder, 'curve.svg'), 'utf8')
  t.match(svg, 'a &lt; b')
  t.match(svg, 'd="M184.8 40.0L700.0 178.0"')
  t.equal(svg.match(/<circle/g)?.length, 1)
  await writeFile(join(folder, 'log.jsonl'), '')
  await writeCurve(join(folder, 'log.jsonl'), join(folder, 'curve.svg'), 'empty')
  t.notMatch(await readFile(join(folder, 'curve.svg'), 'utf8'), /NaN|Infinity/)
})

t.test('the table has five figures', async (t) => {
  const table = renderTable([['after', summarize([{ answer: '?', answers: ['?'] }])]])
  t.match(table, /after.*100\.00.*100\.00.*100\.00.*100\.00.*0\.00.*1/)
})

t.test('the reference’s strict parser', async (t) => {
  t.equal(readStrictly('```json\n{\n  "answer": "x"\n}\n```'), 'x')
  t.equal(readStrictly('{"answer": "a } b"}'), null)
  t.equal(readStrictly("{answer: 'x'}"), null)
  t.equal(readStrictly('{"answer": 1}'), null)
  t.equal(readStrictly('none'), null)
})

t.test('paired differences', async (t) => {
  const rows = (...values: boolean[]) => values.map((exactMatch) => ({ exactMatch }))
  const { mean, error } = difference(rows(true, true, false, false), rows(true, false, false, true))
  t.equal(mean, 0)
  t.ok(Math.abs(error - Math.sqrt(2 / 3 / 4)) < 1e-12)
})

t.test('a reference run’s files', async (t) => {
  const folder = t.testdir()
  await mkdir(folder, { recursive: true })
  const write = (name: string, value: unknown) =>
    writeFile(join(folder, name), typeof value === 'string' ? value : JSON.stringify(value))
  await write('log.jsonl', '{"step": 1, "loss": 1.5}\n{"step": 2, "loss": 1.25}\n')
  await write('batches.json', [{ step: 1, learning_rate: 0.5, samples: [{ id: 'a', input_ids: [1, 2], labels_from: 1 }] }])
  await write('answers_after.json', [{ id: 'a', model: '?', exact: true, text: '' }])
  const greedy = { tokens: [3], options: { max_new_tokens: 32 } }
  const beams = { tokens: [4], score: -1, options: { max_new_tokens: 16, num_beams: 4 } }
  await write('generation.json', [{ id: 'a', input_ids: [1], greedy, beams }])
  const { steps, losses } = await readPeer(folder)
  t.same(steps, [{ step: 1, learningRate: 0.5, samples: [{ inputIds: [1, 2], labelsFrom: 1 }] }])
  t.same(losses, [1.5, 1.25])
  t.match((await readPeerGenerations(folder))[0], { beams: { numBeams: 4, maxNewTokens: 16, score: -1, tokenIds: [4] } })
  t.match((await readPeerAnswers(folder, [{ id: 'a', answers: ['?'] }]))[0], { answer: '?', exactMatch: true })
  await t.rejects(readPeerAnswers(folder, [{ id: 'b', answers: [] }]), /no answer to question b/)
})
