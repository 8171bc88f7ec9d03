import json5 from 'json5'

/**
 * The answer that a model gave in JSON: the string under `answer` of the first object in `text` that has one, in a code fence or
 * bare, with prose around it. Read as JSON5 (single quotes, trailing commas, unquoted keys). null where there is none: no object,
 * one that was cut off, or an `answer` that is not a string.
 */
export function extractAnswer(text: string): string | null {
  for (let start = text.indexOf('{'); start >= 0; start = text.indexOf('{', start + 1)) {
    // The shortest candidate that parses: a brace may also stand inside a string.
    for (let end = text.indexOf('}', start); end >= 0; end = text.indexOf('}', end + 1)) {
      const value = parse(text.slice(start, end + 1))
      if (value === undefined) continue
      const answer = (value as { answer?: unknown } | null)?.answer
      if (typeof answer === 'string') return answer
      break
    }
  }
  return null
}

function parse(text: string): unknown {
  try {
    return json5.parse(text)
  } catch {
    return undefined
  }
}
