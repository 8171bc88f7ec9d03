import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { drawTree, segmentsOf, treeToSvg } from '../../../lib/data/tree-picture.js'

const letters = (text: string) => Array.from(text, (letter) => letter.codePointAt(0)!)
const sample = (prompt: string, answer: string) => ({
  inputIds: letters(prompt + answer),
  labels: [...letters(prompt).map(() => -100), ...letters(answer)],
})
const textOf = (ids: readonly number[]) => String.fromCodePoint(...ids)
const green = (text: string) => `\x1b[32m${text}\x1b[0m`
const samples = [sample('one two\n', 'xy'), sample('one two\n', 'z<'), sample('one three', 'q'), sample('one', '')]

t.test('segments', async (t) => {
  const shape = (segments: ReturnType<typeof segmentsOf>): unknown[] =>
    segments.map(({ from, to, samples: own, children }) => [from, to, own, shape(children)])
  t.same(shape(segmentsOf(Batch.pack(samples))), [
    [
      0,
      3,
      [0, 1, 2, 3],
      [
        [
          3,
          5,
          [0, 1, 2],
          [
            [
              5,
              8,
              [0, 1],
              [
                [8, 10, [0], []],
                [10, 12, [1], []],
              ],
            ],
            [12, 17, [2], []],
          ],
        ],
      ],
    ],
  ])
  t.equal(segmentsOf(Batch.pack(samples, { sharePrefixes: false })).length, 4)
})

t.test('a tree for a terminal', async (t) => {
  t.equal(
    drawTree(Batch.pack(samples), { textOf }),
    [
      '4 samples: 17 tokens as a tree, 33 side by side (1.9 x), loss on 5',
      '└─ 3 tokens, 4 samples: one',
      '   └─ 2 tokens, 3 samples:  t',
      '      ├─ 3 tokens, 2 samples: wo⏎',
      `      │  ├─ 2 tokens, sample 0: ${green('xy')}`,
      `      │  └─ 2 tokens, sample 1: ${green('z<')}`,
      `      └─ 5 tokens, sample 2: hree${green('q')}`,
    ].join('\n'),
  )
  const trimmed = drawTree(Batch.pack(samples.slice(0, 3), { trimUnused: true }), { textOf, width: 5 })
  t.match(trimmed, `sample 0: ${green('x')}${green('→y')}`, 'what is predicted, but not read')
  t.match(trimmed, `sample 2: hree${green('→q')}\n`.slice(0, 10))
  const long = drawTree(Batch.pack([sample('0123456789', 'ab')]), { textOf, width: 7 })
  t.match(long, `012…9${green('ab')}`)
})

t.test('a tree as SVG', async (t) => {
  const svg = treeToSvg(Batch.pack(samples), { textOf })
  t.equal(svg.match(/<rect /g)!.length, 1 + 6)
  t.match(svg, '<tspan fill="#1a7f37">z&lt;</tspan>')
  t.match(svg, /4 samples: 17 tokens as a tree/)
  t.match(svg, /^<svg [^>]*viewBox="0 0 1000 \d+"/)
})
