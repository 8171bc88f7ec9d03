import type { BatchData } from './batch-data.js'

/** A run of tokens that the same samples have in common: as long as none of them ends and none goes another way. */
export interface TreeSegment {
  /** Its rows of the stream: [from, to). */
  from: number
  to: number
  samples: number[]
  children: TreeSegment[]
}

/** What a picture is drawn of: the text of token ids, and colours for what is predicted. */
export interface PictureOptions {
  textOf(ids: readonly number[]): string
  /** Characters of a segment's text at most; a longer one loses its middle. */
  width?: number
}

const GREEN = '\x1b[32m'
const RESET = '\x1b[0m'
const WIDTH = 72
/** A token that is predicted, but that no row reads. */
const PREDICTED = '→'

/** The segments of a batch, from its roots on. */
export function segmentsOf({ sampleRows }: Pick<BatchData, 'sampleRows'>): TreeSegment[] {
  const roots: TreeSegment[] = []
  const open = [{ samples: sampleRows.map((_, sample) => sample), at: 0, into: roots }]
  for (let next = open.pop(); next; next = open.pop()) {
    const { samples, at, into } = next
    const groups = new Map<number, number[]>()
    for (const sample of samples) {
      const row = sampleRows[sample]![at]
      if (row !== undefined) groups.set(row, [...(groups.get(row) ?? []), sample])
    }
    for (const [from, group] of groups) {
      let end = at + 1
      const [first, ...others] = group.map((sample) => sampleRows[sample]!)
      while (end < first!.length && others.every((rows) => rows[end] === first![end])) end++
      const segment: TreeSegment = { from, to: from + end - at, samples: group, children: [] }
      into.push(segment)
      open.push({ samples: group, at: end, into: segment.children })
    }
  }
  return roots
}

interface Piece {
  text: string
  predicted: boolean
}

/** The text of a segment in pieces with and without loss; last, behind an arrow, what it predicts beyond the tokens of the batch. */
function piecesOf(
  segment: TreeSegment,
  batch: BatchData,
  before: number,
  targets: TargetsOfRow,
  textOf: PictureOptions['textOf'],
) {
  const pieces: { ids: number[]; predicted: boolean }[] = []
  for (let row = segment.from; row < segment.to; row++) {
    const id = batch.inputIds[row]!
    const predicted = targets.get(row === segment.from ? before : row - 1)?.has(id) === true
    const last = pieces.at(-1)
    if (last?.predicted === predicted) last.ids.push(id)
    else pieces.push({ ids: [id], predicted })
  }
  const read = new Set(segment.children.map((child) => batch.inputIds[child.from]!))
  const unread = [...(targets.get(segment.to - 1) ?? [])].filter((id) => !read.has(id))
  return [
    ...pieces.map(({ ids, predicted }): Piece => ({ text: visible(textOf(ids)), predicted })),
    ...unread.map((id): Piece => ({ text: PREDICTED + visible(textOf([id])), predicted: true })),
  ]
}

type TargetsOfRow = ReadonlyMap<number, ReadonlySet<number>>

function targetsOf({ targetRows, targetIds }: BatchData): TargetsOfRow {
  const targets = new Map<number, Set<number>>()
  for (const [i, row] of targetRows.entries()) targets.set(row, (targets.get(row) ?? new Set()).add(targetIds[i]!))
  return targets
}

const visible = (text: string) => text.replaceAll('\n', '⏎').replaceAll('\t', '⇥')

/** Cuts pieces in the middle so that `width` characters are left. */
function shorten(pieces: readonly Piece[], width: number): Piece[] {
  const length = pieces.reduce((sum, { text }) => sum + text.length, 0)
  if (length <= width) return [...pieces]
  const head = Math.ceil((width - 1) / 2)
  const tail = length - (width - 1 - head)
  let at = 0
  return pieces.flatMap(({ text, predicted }) => {
    const [from, to] = [at, at + text.length]
    at = to
    const left = text.slice(0, Math.max(0, head - from))
    const right = text.slice(Math.max(0, tail - from))
    const gap = from <= head && head < to ? '…' : ''
    return left + gap + right ? [{ text: left + gap + right, predicted }] : []
  })
}

/** A line for each segment, depth first. */
interface Line {
  segment: TreeSegment
  /** Whether the segment and each of its ancestors is the last child of its parent, from the root on. */
  last: boolean[]
  /** Tokens from the root to the segment's start. */
  position: number
  pieces: Piece[]
}

function linesOf(batch: BatchData, { textOf, width = WIDTH }: PictureOptions): Line[] {
  const targets = targetsOf(batch)
  const lines: Line[] = []
  type Pending = { segment: TreeSegment; last: boolean[]; position: number; before: number }
  const push = (open: Pending[], segments: readonly TreeSegment[], { last, position, before }: Omit<Pending, 'segment'>) => {
    for (let i = segments.length - 1; i >= 0; i--) {
      open.push({ segment: segments[i]!, last: [...last, i === segments.length - 1], position, before })
    }
  }
  const open: Pending[] = []
  push(open, segmentsOf(batch), { last: [], position: 0, before: -1 })
  for (let next = open.pop(); next; next = open.pop()) {
    const { segment, last, position, before } = next
    lines.push({ segment, last, position, pieces: shorten(piecesOf(segment, batch, before, targets, textOf), width) })
    push(open, segment.children, { last, position: position + segment.to - segment.from, before: segment.to - 1 })
  }
  return lines
}

const count = (n: number, what: string) => `${n} ${what}${n === 1 ? '' : 's'}`

/** What sharing saves, in a sentence. */
function summaryOf({ inputIds, sampleRows, targetRows }: BatchData): string {
  const apart = sampleRows.reduce((sum, rows) => sum + rows.length, 0)
  const times = (apart / inputIds.length).toFixed(1)
  return `${count(sampleRows.length, 'sample')}: ${count(inputIds.length, 'token')} as a tree, ${apart} side by side (${times} x), loss on ${targetRows.length}`
}

/**
 * A batch as a tree for a terminal: a line for each segment with its number of tokens, its samples and its text, green where there is
 * loss. Behind an arrow stands what is predicted, but read by no one.
 */
export function drawTree(batch: BatchData, options: PictureOptions): string {
  const lines = linesOf(batch, options).map(({ segment, last, pieces }) => {
    const branches = last.map((isLast, i) => (i < last.length - 1 ? (isLast ? '   ' : '│  ') : isLast ? '└─ ' : '├─ ')).join('')
    const text = pieces.map((piece) => (piece.predicted ? GREEN + piece.text + RESET : piece.text)).join('')
    const { from, to, samples } = segment
    const whose = samples.length > 1 ? count(samples.length, 'sample') : `sample ${samples[0]}`
    return `${branches}${count(to - from, 'token')}, ${whose}: ${text}`
  })
  return [summaryOf(batch), ...lines].join('\n')
}

const ROW = 22
const LEFT = 8
const TOP = 34
const PICTURE_WIDTH = 1000

const escapeXml = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

/**
 * The same as an SVG picture: time goes to the right, a segment is a bar as long as its tokens and as high as the samples that share it.
 * Bars of tokens that one sample has for itself are light.
 */
export function treeToSvg(batch: BatchData, { textOf }: Pick<PictureOptions, 'textOf'>): string {
  const longest = batch.sampleRows.reduce((length, rows) => Math.max(length, rows.length), 0)
  const scale = (PICTURE_WIDTH - 2 * LEFT) / longest
  const targets = targetsOf(batch)
  const bars: string[] = []
  // A sample that ends inside the tree takes a place of its own, so that every bar is as high as its samples.
  const draw = (segment: TreeSegment, position: number, place: number, before: number) => {
    const { from, to, samples } = segment
    const [x, y] = [LEFT + position * scale, TOP + place * ROW]
    const [width, height] = [(to - from) * scale, samples.length * ROW - 2]
    const pieces = piecesOf(segment, batch, before, targets, textOf)
    const text = shorten(pieces, Math.max(1, Math.floor(width / 6.2)))
    const spans = text.map((piece) => `<tspan${piece.predicted ? ' fill="#1a7f37"' : ''}>${escapeXml(piece.text)}</tspan>`)
    bars.push(
      `<rect x="${x.toFixed(1)}" y="${y}" width="${Math.max(1, width - 1).toFixed(1)}" height="${height}" rx="3" fill="${samples.length > 1 ? '#b6d4fe' : '#eef3f8'}"/>`,
      `<text x="${(x + 4).toFixed(1)}" y="${y + height / 2 + 3.5}">${spans.join('')}</text>`,
    )
    let below = place
    for (const child of segment.children) {
      draw(child, position + to - from, below, to - 1)
      below += child.samples.length
    }
  }
  let place = 0
  for (const root of segmentsOf(batch)) {
    draw(root, 0, place, -1)
    place += root.samples.length
  }
  const height = TOP + place * ROW + 8
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${PICTURE_WIDTH} ${height}" font-family="ui-monospace, monospace" font-size="10" xml:space="preserve">`,
    `<rect width="${PICTURE_WIDTH}" height="${height}" fill="#ffffff"/>`,
    `<text x="${LEFT}" y="20" font-family="sans-serif" font-size="13">${escapeXml(summaryOf(batch))}</text>`,
    ...bars,
    '</svg>\n',
  ].join('\n')
}
