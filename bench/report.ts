/**
 * Writes docs/benchmarks.md and its chart from the results in bench/results.
 *
 * usage: node dist/bench/report.js
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { argv } from 'node:process'
import { fileURLToPath } from 'node:url'
import type { Row, Section } from './sections.js'

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../..')
export const RESULTS = join(ROOT, 'bench/results')

/** A file of bench/results. */
export interface Result {
  date: string
  /** `gpu`: what the sections ran on, where that was no CPU; `heldTo`: the instructions used, where the CPU has more. */
  machine: { cpu: string; cores: number; bfloat16: boolean; node: string; gpu?: string; heldTo?: string }
  /** Names and versions of the peers. */
  peers: Record<string, string>
  sections: Record<string, Section>
}

export const ratioOf = ({ ours, theirs }: Row): number | null => (theirs === undefined ? null : ours / theirs)

const reached = (row: Row, ratio: number) => (row.smallerIsBetter ? ratio <= row.required! : ratio >= row.required!)

/** A section as a Markdown table. */
export function renderSection({ title, rows, remark }: Section): string {
  const compared = rows.some(({ peer }) => peer)
  const cells = rows.map((row) => [row.what, `${rounded(row.ours)} ${row.unit}`, ...(compared ? comparison(row) : [])])
  const head = ['', 'quantune', ...(compared ? ['peer', 'its figure', 'ratio', 'required'] : [])]
  const lines = [head, head.map((_, i) => (i === 0 || head[i] === 'peer' ? '---' : '---:')), ...cells]
  return `### ${title}\n\n${lines.map((line) => `| ${line.join(' | ')} |`).join('\n')}\n${remark ? `\n${remark}\n` : ''}`
}

function comparison(row: Row): string[] {
  const ratio = ratioOf(row)
  if (ratio === null) return ['', '', '', '']
  const bound = row.required === undefined ? '' : `${row.smallerIsBetter ? '<=' : '>='} ${rounded(row.required)}`
  const missed = row.required !== undefined && !reached(row, ratio) ? ' (missed)' : ''
  return [row.peer!, `${rounded(row.theirs!)} ${row.unit}`, `${ratio.toFixed(2)} x`, bound + missed]
}

function rounded(value: number): string {
  if (value >= 100) return Math.round(value).toLocaleString('en-US')
  return String(Number(value.toPrecision(3)))
}

export function writeReport(): void {
  const files = readdirSync(RESULTS).filter((name) => /^\d{4}-\d\d-\d\d(-cuda\d*|-avx2)?\.json$/.test(name))
  const results = files.sort().map((name) => JSON.parse(readFileSync(join(RESULTS, name), 'utf8')) as Result)
  const newest = results.filter(({ machine }) => !machine.gpu && !machine.heldTo).at(-1)
  if (newest) writeFileSync(join(ROOT, 'docs/benchmarks.svg'), chart(newest))
  const text = [
    '# Benchmarks',
    '',
    'Written by `npm run bench` from the files in `bench/results`; do not edit. Ratios are of one machine in one run, medians; each trial is a',
    'process of its own, ours and the peer in turn. A requirement belongs to the kind of machine: CPUs with bfloat16 products are asked for more.',
    '',
    '![Ratios to the peers](benchmarks.svg)',
    '',
    ...results.reverse().map(renderResult),
  ]
  writeFileSync(join(ROOT, 'docs/benchmarks.md'), text.join('\n'))
}

function renderResult({ date, machine, peers, sections }: Result): string {
  const products = machine.bfloat16 ? 'with bfloat16 products' : 'without bfloat16 products'
  const kind = machine.heldTo ? `held to ${machine.heldTo}` : products
  const others = Object.entries(peers).map(([name, version]) => `${name} ${version}`)
  const place = machine.gpu ?? `${machine.cores} cores ${kind} (${machine.cpu})`
  const facts = [place, `Node ${machine.node}`, ...others].join(', ')
  const variant = Object.values(sections).flatMap(({ trials }) => trials.map(({ setting }) => setting.variant))[0]
  return `## ${date}\n\n${facts}; kernels: ${String(variant)}.\n\n${Object.values(sections).map(renderSection).join('\n')}`
}

const WIDTH = 760
const BAR = 22
const LEFT = 380

/** Bars of how many times better than the peer each figure is, on a logarithmic scale, with marks where it should be. */
export function chart({ sections, date }: Result): string {
  const bars = Object.entries(sections)
    .filter(([name]) => name !== 'kernels')
    .flatMap(([, { rows }]) => rows)
    .flatMap((row) => {
      const ratio = ratioOf(row)
      if (ratio === null) return []
      const better = row.smallerIsBetter ? 1 / ratio : ratio
      const mark = row.required === undefined ? null : row.smallerIsBetter ? 1 / row.required : row.required
      return [{ label: `${row.what}, ${row.unit}`, peer: row.peer!, better, mark }]
    })
  const most = Math.max(2, ...bars.flatMap(({ better, mark }) => [better, mark ?? 1]))
  const least = Math.min(0.5, ...bars.map(({ better }) => better))
  const x = (ratio: number) => LEFT + (Math.log(ratio / least) / Math.log(most / least)) * (WIDTH - LEFT - 60)
  const height = 60 + bars.length * BAR * 1.6
  const lines = bars.map(({ label, peer, better, mark }, i) => {
    const y = 46 + i * BAR * 1.6
    const [from, to] = better >= 1 ? [x(1), x(better)] : [x(better), x(1)]
    const needle = mark === null ? '' : `<path d="M${x(mark).toFixed(1)} ${y - 2}v${BAR + 4}" stroke="#333" stroke-width="2"/>`
    return `<text x="${LEFT - 10}" y="${y + 9}" text-anchor="end">${escapeXml(label)}</text>
<text x="${LEFT - 10}" y="${y + 22}" text-anchor="end" font-size="10" fill="#777">${escapeXml(peer)}</text>
<rect x="${from.toFixed(1)}" y="${y}" width="${Math.max(1, to - from).toFixed(1)}" height="${BAR}" fill="${better >= 1 ? '#1f77b4' : '#d95f02'}"/>${needle}
<text x="${(to + 6).toFixed(1)}" y="${y + 15}">${better.toFixed(2)} x</text>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12" fill="#333">
<rect width="100%" height="100%" fill="white"/>
<text x="20" y="24" font-size="14">Times better than the peer (log scale; the black mark is what is required), ${date}</text>
<path d="M${x(1).toFixed(1)} 36V${height - 10}" stroke="#999"/>
${lines.join('\n')}
</svg>
`
}

function escapeXml(text: string): string {
  return text.replace(/[<>&]/g, (c) => ({ '<': '&lt;', '>': '&gt;', '&': '&amp;' })[c]!)
}

if (argv[1] === fileURLToPath(import.meta.url)) writeReport()
