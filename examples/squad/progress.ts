// Bars on a terminal, a few plain lines elsewhere.
import { Presets, SingleBar } from 'cli-progress'
import type { Progress } from '../../lib/index.js'

export interface Bar {
  update(value: number, note?: string): void
  stop(): void
}

/** A bar from 0 to `total`; where there is no terminal, a line at every twentieth. */
export function openBar(label: string, total: number, start = 0): Bar {
  if (process.stderr.isTTY) {
    const format = `${label} {bar} {value}/{total} | {duration_formatted} < {eta_formatted} {note}`
    const bar = new SingleBar(
      { format, stream: process.stderr, hideCursor: true, barsize: 24, etaBuffer: 200 },
      Presets.shades_classic,
    )
    bar.start(total, start, { note: '' })
    return { update: (value, note = '') => bar.update(value, { note }), stop: () => bar.stop() }
  }
  let shown = Math.floor((20 * start) / total)
  return {
    update(value, note = '') {
      const part = Math.floor((20 * value) / total)
      if (part > shown) console.error(`${label} ${value}/${total} ${note}`.trimEnd())
      shown = part
    },
    stop() {},
  }
}

/** Bytes that take a while. */
const WORTH_SHOWING = 2 ** 26

/** Shows a model's download and loading. */
export function loading(): (progress: Progress) => void {
  let shown = ''
  let bar: Bar | null = null
  return ({ stage, file, loadedBytes, totalBytes }) => {
    const key = `${stage} ${file ?? ''}`.trim()
    if (key !== shown) {
      bar?.stop()
      shown = key
      bar = totalBytes > WORTH_SHOWING ? openBar(key, totalBytes) : null
    }
    bar?.update(loadedBytes)
    if (loadedBytes === totalBytes) {
      bar?.stop()
      bar = null
    }
  }
}
