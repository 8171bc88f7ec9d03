// The loss curve of a log.jsonl as an SVG picture.
import { readFile, writeFile } from 'node:fs/promises'

interface Point {
  step: number
  loss: number
}

const WIDTH = 720
const HEIGHT = 360
const MARGIN = { left: 56, right: 20, top: 40, bottom: 44 }

/** Losses over the steps in one colour: a line, or dots with one. */
interface Series {
  label: string
  points: readonly Point[]
  dots?: boolean
}

const COLORS = ['#1f77b4', '#d95f02', '#2ca02c', '#9467bd']

/** Draws the losses of training and validation over the steps. */
export async function writeCurve(logPath: string, svgPath: string, title: string): Promise<void> {
  await writeFile(svgPath, curve(title, await seriesOf(logPath)))
}

/** Draws several runs into one picture; `logs` maps what they are called to their log.jsonl. */
export async function writeCurves(logs: Record<string, string>, svgPath: string, title: string): Promise<void> {
  const runs = await Promise.all(Object.entries(logs).map(([name, path]) => seriesOf(path, name)))
  await writeFile(svgPath, curve(title, runs.flat()))
}

async function seriesOf(logPath: string, run?: string): Promise<Series[]> {
  const lines = (await readFile(logPath, 'utf8')).split('\n').filter((line) => line.trim() !== '')
  const entries = lines.map((line) => JSON.parse(line) as Record<string, number | undefined>)
  const pick = (key: string): Point[] =>
    entries.flatMap((entry) => (typeof entry[key] === 'number' ? [{ step: entry.step ?? 0, loss: entry[key] }] : []))
  const name = (what: string) => (run === undefined ? what : `${run}: ${what}`)
  const series = [
    { label: name('training'), points: pick('loss') },
    { label: name('validation'), points: pick('eval_loss'), dots: true },
  ]
  return series.filter(({ points }) => points.length > 0)
}

export function curve(title: string, series: readonly Series[]): string {
  const all = series.flatMap(({ points }) => points)
  const lastStep = Math.max(1, ...all.map(({ step }) => step))
  const top = niceCeiling(Math.max(1e-9, ...all.map(({ loss }) => loss)))
  const x = (step: number) => MARGIN.left + (step / lastStep) * (WIDTH - MARGIN.left - MARGIN.right)
  const y = (loss: number) => HEIGHT - MARGIN.bottom - (loss / top) * (HEIGHT - MARGIN.top - MARGIN.bottom)
  const path = (points: readonly Point[]) =>
    points.map(({ step, loss }, i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join('')
  const ticks = [0, 0.25, 0.5, 0.75, 1]
  const horizontal = ticks.map((part) => {
    const at = y(part * top).toFixed(1)
    return `<path d="M${MARGIN.left} ${at}H${WIDTH - MARGIN.right}" stroke="#ddd"/><text x="${MARGIN.left - 8}" y="${at}" dy="4" text-anchor="end">${label(part * top)}</text>`
  })
  const vertical = ticks.map(
    (part) =>
      `<text x="${x(part * lastStep).toFixed(1)}" y="${HEIGHT - MARGIN.bottom + 18}" text-anchor="middle">${Math.round(part * lastStep)}</text>`,
  )
  const color = (i: number) => COLORS[i % COLORS.length]!
  const drawn = series.map(({ points, dots }, i) =>
    dots
      ? points
          .map(({ step, loss }) => `<circle cx="${x(step).toFixed(1)}" cy="${y(loss).toFixed(1)}" r="3" fill="${color(i)}"/>`)
          .join('')
      : // Dashes, so that a line that lies on an earlier one shows.
        `<path d="${path(points)}" fill="none" stroke="${color(i)}" stroke-width="1.5"${i > 0 ? ' stroke-dasharray="5 5"' : ''}/>`,
  )
  const names = series.map(({ label }, i) => `<tspan fill="${color(i)}">${escapeXml(label)}</tspan>`)
  const legend = `<text x="${WIDTH - MARGIN.right}" y="22" text-anchor="end">${names.join(' · ')}</text>`
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">
<rect width="100%" height="100%" fill="white"/>
<text x="${MARGIN.left}" y="22" font-size="14">${escapeXml(title)}</text>
${legend}
${horizontal.join('\n')}
${vertical.join('\n')}
<text x="${(WIDTH + MARGIN.left) / 2}" y="${HEIGHT - 8}" text-anchor="middle">step</text>
<text transform="translate(14 ${HEIGHT / 2}) rotate(-90)" text-anchor="middle">loss</text>
${drawn.join('\n')}
</svg>
`
}

/** The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `value`. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999)!
}

function label(value: number): string {
  return String(Number(value.toPrecision(3)))
}

function escapeXml(text: string): string {
  return text.replace(/[<>&]/g, (c) => ({ '<': '&lt;', '>': '&gt;', '&': '&amp;' })[c]!)
}
