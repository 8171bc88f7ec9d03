import { chatCases } from './chat.js'
import { forwardCases } from './forward.js'
import { generationCases } from './generation.js'
import { quantizationCases } from './quantization.js'
import { type CaseResult, type GoldenCase, passed } from './result.js'
import { tokenCases } from './tokens.js'
import { trainCases } from './train.js'

/** All reference cases of a folder. */
export function goldenCases(folder: string): GoldenCase[] {
  return [forwardCases, trainCases, tokenCases, quantizationCases, generationCases, chatCases].flatMap((list) => list(folder))
}

export async function runCase({ name, missing, run }: GoldenCase): Promise<CaseResult> {
  if (!run) return { name, missing: missing ?? 'not implemented' }
  try {
    const outcome = await run()
    return Array.isArray(outcome) ? { name, figures: outcome } : { name, ...outcome }
  } catch (error) {
    return { name, error }
  }
}

/** One line: the case, its verdict, its largest deviations with what they may be. */
export function describe(result: CaseResult): string {
  const name = result.name.padEnd(32)
  if ('missing' in result) return `missing  ${name} ${result.missing}`
  if ('error' in result)
    return `FAILED   ${name} ${result.error instanceof Error ? result.error.message : String(result.error)}`
  const figures = result.figures.map(({ what, deviation, tolerance }) => {
    const value = Number.isInteger(deviation) ? String(deviation) : deviation.toExponential(1)
    return `${what} ${value}${deviation <= tolerance ? '' : ` (at most ${tolerance.toExponential(0)})`}`
  })
  const note = result.note ? `; ${result.note}` : ''
  return `${passed(result) ? 'ok       ' : 'FAILED   '}${name} ${figures.join(', ')}${note}`
}
