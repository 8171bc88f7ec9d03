import t from 'tap'
import { answerF1, exactMatch, normalizeAnswer, squadMetrics } from '../../../lib/evaluation/squad-metrics.js'
import { summarize } from '../../../lib/evaluation/summary.js'

t.test('normalises as the official script does', async (t) => {
  t.equal(normalizeAnswer('The  Battle of Hastings,\tin a year!'), 'battle of hastings in year')
  t.equal(normalizeAnswer('théâtre a-b'), 'théâtre ab')
  t.equal(normalizeAnswer('an'), '')
  t.equal(normalizeAnswer('aé the'), 'aé')
})

t.test('F1 counts common tokens with their multiplicity', async (t) => {
  t.equal(answerF1('the cat sat', 'cat'), 2 / 3)
  t.equal(answerF1('a', ''), 1)
  t.equal(answerF1('cat', ''), 0)
  t.equal(answerF1('to be', 'to be to be'), 2 / 3)
})

t.test('exact match is word for word', async (t) => {
  t.equal(exactMatch('Paris', ['London', 'Paris']), true)
  t.equal(exactMatch('paris', ['Paris']), false)
  t.equal(exactMatch(null, ['?']), false)
  t.equal(exactMatch('?', ['?']), true)
  t.equal(exactMatch('?', []), true)
  t.equal(exactMatch('Paris', []), false)
})

const rows = [
  { answer: 'the Normans', answers: ['Normans', 'the Normans of old'] },
  { answer: 'Paris', answers: ['Paris'] },
  { answer: '?', answers: ['London'] },
  { answer: '?', answers: ['?'] },
  { answer: 'Rome', answers: [] },
  { answer: null, answers: ['?'] },
]

t.test('squadMetrics', async (t) => {
  const metrics = squadMetrics(rows)
  t.same(metrics.hasAnswer, { exact: (100 * 2) / 3, f1: (100 * 2) / 3, total: 3 })
  t.same(metrics.noAnswer, { exact: 100 / 3, f1: 100 / 3, total: 3 })
  t.equal(metrics.exact, 50)
  t.equal(metrics.total, 6)
  t.same(squadMetrics([]), {
    exact: 0,
    f1: 0,
    total: 0,
    hasAnswer: { exact: 0, f1: 0, total: 0 },
    noAnswer: { exact: 0, f1: 0, total: 0 },
  })
})

t.test('summarize scores unanswerable questions against their own count', async (t) => {
  t.same(summarize(rows), {
    validJson: (100 * 5) / 6,
    exactMatch: (100 * 2) / 6,
    exactMatchOfValid: (100 * 2) / 5,
    correctNoAnswer: 100 / 3,
    correctHasAnswer: 100 / 3,
    total: 6,
    totalNoAnswer: 3,
    totalHasAnswer: 3,
  })
})
