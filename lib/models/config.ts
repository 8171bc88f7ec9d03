import { invalidArgument, QuantuneError } from '../errors.js'

/** Reads the fields of a config.json; errors name the field, what was expected and what came. */
export class ConfigReader {
  readonly modelType: string
  readonly #json: Record<string, unknown>

  constructor(json: Record<string, unknown>) {
    this.#json = json
    this.modelType = this.string('model_type')
  }

  has(name: string): boolean {
    return this.#json[name] !== undefined && this.#json[name] !== null
  }

  number(name: string, fallback?: number): number {
    return this.#read(name, 'a number', (value) => typeof value === 'number' && Number.isFinite(value), fallback)
  }

  /** A whole number of at least 1, and no larger than a dimension can be. */
  size(name: string, fallback?: number, most = 2 ** 31 - 1): number {
    const isSize = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0 && (value as number) <= most
    return this.#read(name, `a positive integer of at most ${most}`, isSize, fallback)
  }

  /** A number of layers: parameters are planned for each before any file is read, so it must not be absurd. */
  layers(name: string, fallback?: number): number {
    return this.size(name, fallback, 10_000)
  }

  boolean(name: string, fallback: boolean): boolean {
    return this.#read(name, 'true or false', (value) => typeof value === 'boolean', fallback)
  }

  string(name: string, fallback?: string): string {
    return this.#read(name, 'a string', (value) => typeof value === 'string', fallback)
  }

  object(name: string): Record<string, unknown> | null {
    if (!this.has(name)) return null
    return this.#read(name, 'an object', (value) => typeof value === 'object' && !Array.isArray(value))
  }

  /** The error for a setting that is not supported. */
  unsupported(what: string, supported: string): QuantuneError {
    return new QuantuneError(
      'ERR_UNSUPPORTED_ARCHITECTURE',
      `config.json of model_type "${this.modelType}": ${what} is not supported; supported: ${supported}`,
      { details: { modelType: this.modelType, unsupported: what } },
    )
  }

  /** transformers' default stands in for a missing field; without one the field is required. */
  #read<T>(name: string, expected: string, is: (value: unknown) => boolean, fallback?: T): T {
    const value = this.has(name) ? this.#json[name] : fallback
    if (value === undefined || !is(value)) {
      throw invalidArgument(`config.json: "${name}" must be ${expected}; got ${JSON.stringify(this.#json[name])}`, {
        field: name,
      })
    }
    return value as T
  }
}
