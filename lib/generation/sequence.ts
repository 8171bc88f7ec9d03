import type { EncodedPrompt } from './prompt.js'
import type { StopStrings } from './text.js'

/** Why a sequence ended: with an end token or a stop string, or at its length. */
export type FinishReason = 'stop' | 'length'

/** A prompt on its way through the decoder. */
export interface Request extends EncodedPrompt {
  maxNewTokens: number
}

/** A sequence that grows behind a prompt. */
export class Sequence {
  readonly request: Request
  readonly tokenIds: number[] = []
  finishReason: FinishReason | null = null
  /** Sum of the log-probabilities of drawn tokens. */
  logProb = 0

  constructor(request: Request) {
    this.request = request
  }

  append(tokenId: number, ends: EndConditions): void {
    this.tokenIds.push(tokenId)
    if (ends.reached(this.request, this.tokenIds)) this.finishReason = 'stop'
    else if (this.tokenIds.length >= this.request.maxNewTokens) this.finishReason = 'length'
  }
}

/** What ends a sequence besides its length. */
export class EndConditions {
  readonly #endTokens: ReadonlySet<number>
  readonly #stopStrings: StopStrings | null

  constructor(endTokens: readonly number[], stopStrings: StopStrings | null) {
    this.#endTokens = new Set(endTokens)
    this.#stopStrings = stopStrings
  }

  /** Whether the last of the new tokens ends the sequence. */
  reached(request: Request, tokenIds: readonly number[]): boolean {
    if (this.#endTokens.has(tokenIds.at(-1)!)) return true
    return this.#stopStrings?.reached(request.context, tokenIds) ?? false
  }
}
