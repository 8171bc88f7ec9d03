/** How closely one quantity must agree, and how closely it does. */
export interface Figure {
  what: string
  deviation: number
  tolerance: number
}

export interface Outcome {
  figures: Figure[]
  /** What a reader of the figures must know. */
  note?: string
}

export type CaseResult = ({ name: string } & Outcome) | { name: string; missing: string } | { name: string; error: unknown }

export interface GoldenCase {
  name: string
  /** Why it cannot be run yet; then there is no `run`. */
  missing?: string
  run?: () => Promise<Figure[] | Outcome>
}

/** Largest deviation, absolute or relative, whichever is smaller. */
export function valueDeviation(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  return largest(actual, expected, (a, b) => Math.abs(a - b) / Math.max(1, Math.abs(b)))
}

/** Largest deviation relative to the tensor's largest entry. */
export function gradientDeviation(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let scale = 0
  for (let i = 0; i < expected.length; i++) scale = Math.max(scale, Math.abs(expected[i]!))
  return largest(actual, expected, (a, b) => Math.abs(a - b)) / (scale || 1)
}

/** Number of places at which two lists differ. */
export function differences(actual: ArrayLike<unknown>, expected: ArrayLike<unknown>): number {
  let count = Math.abs(actual.length - expected.length)
  for (let i = 0; i < Math.min(actual.length, expected.length); i++) if (actual[i] !== expected[i]) count++
  return count
}

function largest(actual: ArrayLike<number>, expected: ArrayLike<number>, deviation: (a: number, b: number) => number): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY
  let result = 0
  for (let i = 0; i < expected.length; i++) {
    const found = deviation(actual[i]!, expected[i]!)
    // NaN compares as neither larger nor smaller.
    if (!(found <= result)) result = Number.isNaN(found) ? Number.POSITIVE_INFINITY : found
  }
  return result
}

/** Collects figures, the worst of each kind. */
export class Figures {
  readonly #worst = new Map<string, Figure>()

  add(what: string, deviation: number, tolerance: number): void {
    const known = this.#worst.get(what)
    if (!known || deviation > known.deviation) this.#worst.set(what, { what, deviation, tolerance })
  }

  all(): Figure[] {
    return [...this.#worst.values()]
  }
}

export function passed(result: CaseResult): boolean {
  return 'figures' in result && agree(result.figures)
}

export function agree(figures: readonly Figure[]): boolean {
  return figures.length > 0 && figures.every(({ deviation, tolerance }) => deviation <= tolerance)
}
