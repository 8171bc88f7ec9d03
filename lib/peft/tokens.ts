import type { Parameter } from '../autograd/index.js'
import type { Adapter, LoraLayer, TokenRows } from './adapter.js'
import { disposeTokenRows, parametersOf } from './token-rows.js'

/**
 * Rows for tokens and nothing else (PEFT's TRAINABLE_TOKENS): what calls without another adapter use for added tokens, and
 * embedding-only training trains.
 */
export class TokensAdapter implements Adapter {
  readonly type = 'tokens'
  readonly name: string
  readonly config = null
  readonly layers: ReadonlyMap<string, LoraLayer> = new Map()
  merged = false
  #tokenRows: TokenRows

  /** Owns `rows` from now on. */
  constructor(name: string, rows: TokenRows) {
    this.name = name
    this.#tokenRows = rows
  }

  get tokenRows(): TokenRows {
    return this.#tokenRows
  }

  setTokenRows(rows: TokenRows): void {
    this.dispose()
    this.#tokenRows = rows
  }

  parameters(): ReadonlyMap<string, Parameter> {
    return new Map(parametersOf(this.#tokenRows).map((parameter) => [parameter.name, parameter]))
  }

  lora(): LoraLayer | null {
    return null
  }

  replaced(): Parameter | null {
    return null
  }

  dispose(): void {
    disposeTokenRows(this.#tokenRows)
  }
}
