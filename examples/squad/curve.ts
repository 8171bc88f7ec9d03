// The loss curve of a log.jsonl as an SVG picture.
import { readFile, writeFile } from 'node:fs/promises'

interface Point {
  step: number
  loss: number
}

const WIDTH = 720
const HEIGHT = 360
const MARGIN = { left: 56, right: 20, top: 40, bottom: 44 }

/** Draws the losses of training and validation over the steps. */
export async function writeCurve(logPath: string, svgPath: string, title: string): Promise<void> {
  const lines = (await readFile(logPath, 'utf8')).split('\n').filter((line) => line.trim() !== '')
  const entries = lines.map((line) => JSON.parse(line) as Record<string, number | undefined>)
  const pick = (key: string): Point[] =>
    entries.flatMap((entry) => (typeof entry[key] === 'number' ? [{ step: entry.step ?? 0, loss: entry[key] }] : []))
  await writeFile(svgPath, curve(title, pick('loss'), pick('eval_loss')))
}

export function curve(title: string, training: readonly Point[], validation: readonly Point[]): string {
  const all = [...training, ...validation]
  const lastStep = Math.max(1, ...all.map(({ step }) => step))
  const top = niceCeiling(Math.max(1e-9, ...all.map(({ loss }) => loss)))
  const x = (step: number) => MARGIN.left + (step / lastStep) * (WIDTH - MARGIN.left - MARGIN.right)
  const y = (loss: number) => HEIGHT - MARGIN.bottom - (loss / top) * (HEIGHT - MARGIN.top - MARGIN.bottom)
  const path = (points: readonly Point[]) =>
    points.map(({ step, loss }, i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join('')
  const line = (points: readonly Point[], color: string) =>
    points.length > 0 ? `<path d="${path(points)}" fill="none" stroke="${color}" stroke-width="1.5"/>` : ''
  const ticks = [0, 0.25, 0.5, 0.75, 1]
  const horizontal = ticks.map((part) => {
    const at = y(part * top).toFixed(1)
    return `<path d="M${MARGIN.left} ${at}H${WIDTH - MARGIN.right}" stroke="#ddd"/><text x="${MARGIN.left - 8}" y="${at}" dy="4" text-anchor="end">${label(part * top)}</text>`
  })
  const vertical = ticks.map(
    (part) =>
      `<text x="${x(part * lastStep).toFixed(1)}" y="${HEIGHT - MARGIN.bottom + 18}" text-anchor="middle">${Math.round(part * lastStep)}</text>`,
  )
  const dots = validation.map(
    ({ step, loss }) => `<circle cx="${x(step).toFixed(1)}" cy="${y(loss).toFixed(1)}" r="3" fill="#d95f02"/>`,
  )
  const legend =
    validation.length > 0
      ? `<text x="${WIDTH - MARGIN.right}" y="22" text-anchor="end"><tspan fill="#1f77b4">training</tspan> · <tspan fill="#d95f02">validation</tspan></text>`
      : ''
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">
<rect width="100%" height="100%" fill="white"/>
<text x="${MARGIN.left}" y="22" font-size="14">${escapeXml(title)}</text>
${legend}
${horizontal.join('\n')}
${vertical.join('\n')}
<text x="${(WIDTH + MARGIN.left) / 2}" y="${HEIGHT - 8}" text-anchor="middle">step</text>
<text transform="translate(14 ${HEIGHT / 2}) rotate(-90)" text-anchor="middle">loss</text>
${line(training, '#1f77b4')}
${line(validation, '#d95f02')}${dots.join('\n')}
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
