// How the reference reads and compares answers.

/** The reference's strict parser: the text from the first brace to the first closing one must be JSON with a string as `answer`. */
export function readStrictly(text: string): string | null {
  const [object] = /\{.*?\}/s.exec(text) ?? []
  if (object === undefined) return null
  try {
    const { answer } = JSON.parse(object) as { answer?: unknown }
    return typeof answer === 'string' ? answer : null
  } catch {
    return null
  }
}

/** The mean of the paired differences in exact match, and its standard error. */
export function difference(ours: readonly { exactMatch: boolean }[], theirs: readonly { exactMatch: boolean }[]) {
  const differences = ours.map(({ exactMatch }, i) => Number(exactMatch) - Number(theirs[i]!.exactMatch))
  const mean = differences.reduce((sum, d) => sum + d, 0) / differences.length
  const variance = differences.reduce((sum, d) => sum + (d - mean) ** 2, 0) / (differences.length - 1)
  return { mean, error: Math.sqrt(variance / differences.length) }
}
