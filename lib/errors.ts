/** Stable codes of {@link QuantuneError}. */
export type ErrorCode =
  | 'ERR_INVALID_ARGUMENT'
  | 'ERR_UNSUPPORTED_ARCHITECTURE'
  | 'ERR_UNSUPPORTED_QUANTIZATION'
  | 'ERR_CORRUPT_FILE'
  | 'ERR_IO'
  | 'ERR_HUB_NOT_FOUND'
  | 'ERR_HUB_UNAUTHORIZED'
  | 'ERR_ADAPTER_MISMATCH'
  | 'ERR_ALL_LABELS_MASKED'
  | 'ERR_CONTEXT_LENGTH'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_DEVICE'
  | 'ERR_BUSY'
  | 'ERR_DISPOSED'
  | 'ERR_NOT_FINITE'
  | 'ERR_NO_BINARY'

/** The one error class of the library: a stable `code`, `details` for programs, a `cause` where there is one. */
export class QuantuneError extends Error {
  readonly code: ErrorCode
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, options: { details?: Record<string, unknown>; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'QuantuneError'
    this.code = code
    this.details = options.details ?? {}
  }
}

/** Short for the most frequent refusal: names the parameter, what was expected, and what came. */
export function invalidArgument(message: string, details?: Record<string, unknown>): QuantuneError {
  return new QuantuneError('ERR_INVALID_ARGUMENT', message, { details })
}
