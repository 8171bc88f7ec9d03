import type { Row } from './sections.js'

/** What every trial prints as its last line, for bench/run.ts to read. */
export interface TrialResult {
  name: string
  /** Figures by name; the unit is part of the name (tokensPerSecond, peakMegabytes, …). */
  figures: Record<string, number>
  /** What was run: shape, dtype, threads. */
  setting: Record<string, unknown>
  /** Comparisons that the trial made by itself. */
  rows?: Row[]
}

export function report(result: TrialResult): void {
  process.stdout.write(`${JSON.stringify(result)}\n`)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** The largest resident set of this process so far. */
export function peakMegabytes(): number {
  return Math.round(process.resourceUsage().maxRSS / 1024)
}
