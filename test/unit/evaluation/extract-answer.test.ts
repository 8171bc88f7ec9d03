import fc from 'fast-check'
import t from 'tap'
import { extractAnswer } from '../../../lib/evaluation/extract-answer.js'

t.test('reads fenced and bare objects, tolerantly', async (t) => {
  t.equal(extractAnswer('```json\n{\n  "answer": "Paris"\n}\n```'), 'Paris')
  t.equal(extractAnswer('I think {"answer": "Paris"} is right.'), 'Paris')
  t.equal(extractAnswer("{answer: 'Paris',}"), 'Paris')
  t.equal(extractAnswer('{ "reason": { "a": 1 }, "answer": "?" }'), '?')
  t.equal(extractAnswer('{"answer": "a } b { c"}'), 'a } b { c')
  t.equal(extractAnswer('{ oops } then {"answer": ""}'), '')
  t.equal(extractAnswer('{"other": 1} {"answer": "second"}'), 'second')
})

t.test('gives null where there is no answer', async (t) => {
  for (const text of ['', 'Paris', '{', '{}', '{"answer": "cut', '{"answer": 5}', '{"answer": null}', '["answer"]', '}{']) {
    t.equal(extractAnswer(text), null, JSON.stringify(text))
  }
})

t.test('finds any string that JSON can hold, whatever stands before it', async () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string(), (answer, prose) => {
      const text = `${prose.replaceAll('{', '')}\`\`\`json\n${JSON.stringify({ answer }, null, 2)}\n\`\`\``
      return extractAnswer(text) === answer
    }),
  )
})

t.test('never throws', async () => {
  const pieces = fc.constantFrom('{', '}', '"', "'", 'answer', ':', ',', '\\', '\n', '[', 'x', '1')
  fc.assert(
    fc.property(fc.array(pieces, { maxLength: 40 }), (parts) => {
      const answer = extractAnswer(parts.join(''))
      return answer === null || typeof answer === 'string'
    }),
  )
})
