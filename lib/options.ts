import { inspect } from 'node:util'
import { z } from 'zod'
import { invalidArgument, type QuantuneError } from './errors.js'
import { otherName } from './other-names.js'

/** What parseOptions reads of an issue of zod's: the union of its kinds, flattened. */
interface Issue {
  code?: string
  path: PropertyKey[]
  message: string
  expected?: string
  keys?: string[]
  values?: readonly unknown[]
  origin?: string
  minimum?: number | bigint
  maximum?: number | bigint
  inclusive?: boolean
  errors?: Issue[][]
  discriminator?: string
}

/**
 * Checks options at a public call. Objects are strict: an unknown key is refused and the nearest known one suggested, whether it
 * was misspelt or written in Python's `snake_case`.
 *
 * @param schema - a zod schema, usually an object with defaults; nested objects should be `z.strictObject`
 * @param value - what the caller passed; `undefined` stands for `{}` where the schema is an object
 * @param name - of the option type as the documentation calls it, such as `TrainingArguments`
 * @returns the value with its defaults
 * @throws QuantuneError `ERR_INVALID_ARGUMENT` naming the parameter, what was expected and what came;
 * `details`: `{ parameter, expected?, received?, suggestion? }`
 */
export function parseOptions<S extends z.ZodType>(schema: S, value: unknown, name: string): z.output<S> {
  const strict = schema instanceof z.ZodObject ? schema.strict() : schema
  const given = value === undefined && schema instanceof z.ZodObject ? {} : value
  const result = strict.safeParse(given)
  if (result.success) return result.data as z.output<S>
  throw explain(result.error.issues[0] as unknown as Issue, strict, given, name)
}

function explain(issue: Issue, schema: z.ZodType, value: unknown, name: string): QuantuneError {
  const parameter = [name, ...issue.path.map(String)].join('.')
  if (issue.code === 'unrecognized_keys') return unknownKey(issue, schema, parameter)
  const branch = issue.code === 'invalid_union' ? likelyBranch(issue) : null
  if (branch) return explain({ ...branch, path: [...issue.path, ...branch.path] }, schema, value, name)
  const received = describe(valueAt(value, issue.path))
  if (issue.code === 'custom')
    return invalidArgument(`${parameter}: ${issue.message}, received ${received}`, { parameter, received })
  const expected = expectation(issue)
  return invalidArgument(`${parameter}: expected ${expected}, received ${received}`, { parameter, expected, received })
}

function unknownKey(issue: Issue, schema: z.ZodType, parameter: string): QuantuneError {
  const known = objectsAt(schema, issue.path).flatMap((object) => Object.keys(object.shape))
  return refuseKey(issue.keys![0]!, known, parameter)
}

function refuseKey(key: string, known: readonly string[], parameter: string): QuantuneError {
  const elsewhere = otherName(parameter, camelCase(key))
  if (elsewhere !== undefined)
    return invalidArgument(`${parameter}: unknown option "${key}"; ${elsewhere}`, { parameter: `${parameter}.${key}` })
  const suggestion = nearest(key, known)
  const hint = suggestion ? `; did you mean "${suggestion}"?` : known.length ? `; known are ${known.join(', ')}` : ''
  return invalidArgument(`${parameter}: unknown option "${key}"${hint}`, { parameter: `${parameter}.${key}`, suggestion })
}

/** As the check of {@link parseOptions} for keys, for options that hold class instances and functions. */
export function assertKnownKeys(value: unknown, known: readonly string[], name: string): void {
  if (typeof value !== 'object' || value === null)
    throw invalidArgument(`${name}: expected an object, received ${describe(value)}`)
  const key = Object.keys(value).find((key) => !known.includes(key))
  if (key !== undefined) throw refuseKey(key, known, name)
}

/** The alternative of a union that the value was plainly meant for: the only one that fails below its top, or in its keys. */
function likelyBranch(issue: Issue): Issue | null {
  const deeper = (issue.errors ?? []).filter((branch) =>
    branch.every((i) => i.path.length > 0 || i.code === 'unrecognized_keys'),
  )
  return deeper.length === 1 ? deeper[0]![0]! : null
}

function expectation(issue: Issue): string {
  switch (issue.code) {
    case 'invalid_type':
      return typeNames[issue.expected!] ?? String(issue.expected)
    case 'invalid_value':
      return alternatives(issue.values!.map((v) => inspect(v)))
    case 'too_small':
      return `${subject(issue.origin)} ${issue.inclusive === false ? '>' : '>='} ${issue.minimum}`
    case 'too_big':
      return `${subject(issue.origin)} ${issue.inclusive === false ? '<' : '<='} ${issue.maximum}`
    case 'invalid_union': {
      const all = (issue.errors ?? []).map((branch) => expectation(branch[0]!))
      return all.length ? alternatives([...new Set(all)]) : 'another value'
    }
    default:
      return issue.message.replace(/^expected /, '')
  }
}

const typeNames: Record<string, string> = {
  int: 'an integer',
  number: 'a number',
  string: 'a string',
  boolean: 'true or false',
  object: 'an object',
  array: 'an array',
  function: 'a function',
  record: 'an object',
  undefined: 'undefined',
  null: 'null',
}

const subject = (origin?: string) =>
  origin === 'string'
    ? 'a string of length'
    : origin === 'array'
      ? 'an array of length'
      : (typeNames[origin ?? ''] ?? 'a value')

const alternatives = (names: string[]) =>
  names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} or ${names[names.length - 1]}`

function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'string') return `the string ${inspect(value.length > 60 ? `${value.slice(0, 60)}…` : value)}`
  if (typeof value === 'function') return value.name ? `the function ${value.name}` : 'a function'
  if (Array.isArray(value)) return `an array of length ${value.length}`
  if (typeof value === 'object') {
    const kind = Object.getPrototypeOf(value)?.constructor?.name
    return kind && kind !== 'Object' ? `an instance of ${kind}` : 'an object'
  }
  return String(value)
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((at, key) => (at === null || at === undefined ? undefined : Reflect.get(Object(at), key)), value)
}

/** The object schemas at a path, through optionals, defaults and unions. */
function objectsAt(schema: z.core.$ZodType, path: readonly PropertyKey[]): z.ZodObject[] {
  if (schema instanceof z.ZodUnion) return schema.options.flatMap((option) => objectsAt(option, path))
  if (schema instanceof z.ZodPipe) return objectsAt(schema.in, path)
  if (schema instanceof z.ZodObject) {
    if (path.length === 0) return [schema]
    const field = schema.shape[path[0] as string]
    return field ? objectsAt(field, path.slice(1)) : []
  }
  if (schema instanceof z.ZodArray) return path.length ? objectsAt(schema.element, path.slice(1)) : []
  if (schema instanceof z.ZodRecord) return path.length ? objectsAt(schema.valueType, path.slice(1)) : []
  const inner = (schema as { def?: { innerType?: z.core.$ZodType } }).def?.innerType
  return inner ? objectsAt(inner, path) : []
}

function camelCase(name: string): string {
  return name.replace(/[_-]+([a-zA-Z0-9])/g, (_, letter: string) => letter.toUpperCase())
}

/** The known name that a misspelt one most likely means, or undefined: Python's spelling first, then the least edits. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const camel = camelCase(name)
  const exact = known.find((candidate) => candidate.toLowerCase() === camel.toLowerCase())
  if (exact) return exact
  let best: { name: string; distance: number } | undefined
  for (const candidate of known) {
    const distance = editDistance(camel.toLowerCase(), candidate.toLowerCase())
    if (!best || distance < best.distance) best = { name: candidate, distance }
  }
  const limit = Math.max(2, Math.floor(camel.length / 3))
  return best && best.distance <= limit ? best.name : undefined
}

/** Levenshtein's distance. */
function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      row.push(Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    previous = row
  }
  return previous[b.length]!
}
