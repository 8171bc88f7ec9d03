import type { DecoderInput } from './decoder.js'

/** A group as the loops take it. */
export interface GroupInput extends DecoderInput {
  signal: AbortSignal | undefined
}
