import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { parseOptions } from '../options.js'
import type { TokenRows } from '../peft/adapter.js'
import { createTokenRows } from '../peft/token-rows.js'
import { TokensAdapter } from '../peft/tokens.js'
import { scope, Tensor } from '../tensor/index.js'
import type { ModelAdapter, ModelState } from './state.js'

export interface AddTokensOptions {
  /** Train the rows. Default: true. */
  trainable?: boolean
  /** Whether the model may generate them. Only false (default) is there yet: no row in the head, never generated. */
  predictable?: false
  /** The rows' first values: the mean of all embedding rows (default), or zeros. */
  initFrom?: 'mean' | 'zeros'
}

const optionsSchema = z.strictObject({
  trainable: z.boolean().default(true),
  predictable: z.boolean().default(false),
  initFrom: z.enum(['mean', 'zeros']).default('mean'),
})

/** The name of the rows that calls without an adapter use. */
export const NEW_TOKENS = 'new-tokens'

/**
 * Adds tokens to the tokenizer, and rows for them to every adapter and to the bare base. Tokens that the vocabulary had already get
 * rows of their own too, which stand in for the base's, unless the head shares them.
 * @returns the tokens' ids
 */
export function addTokens(state: ModelState, tokens: readonly string[], options: AddTokensOptions | undefined): number[] {
  const { trainable, predictable, initFrom } = parseOptions(optionsSchema, options, 'AddTokensOptions')
  if (predictable) {
    throw invalidArgument(
      'AddTokensOptions.predictable: tokens that the model can generate need new rows in its head, which is not there yet',
    )
  }
  if (!Array.isArray(tokens) || tokens.length === 0) throw invalidArgument('addTokens: expected a list of one token or more')
  const shared = sharedRows(state, tokens.map((token) => state.tokenizer.convertTokensToIds(token)).filter(isId))
  if (shared.length > 0) {
    const token = state.tokenizer.convertIdsToTokens(shared[0]!)
    throw invalidArgument(`addTokens: ${JSON.stringify(token)} is a token already, and ${headShares}; add a new token instead`)
  }
  const ids = state.tokenizer.addTokens(tokens)
  const unique = [...new Set(ids)]
  scope(() => {
    const first = initFrom === 'mean' ? embeddingMean(state) : null
    for (const adapter of state.adapters.values())
      adapter.setTokenRows(extended(state, adapter.tokenRows, unique, first, trainable))
    const rows = extended(state, state.newTokens?.tokenRows ?? null, unique, first, trainable)
    if (state.newTokens) state.newTokens.setTokenRows(rows)
    else state.newTokens = new TokensAdapter(NEW_TOKENS, rows)
  })
  suppress(state, unique)
  return ids
}

const isId = (id: number | null) => id !== null

export const headShares =
  "its embedding row is the head's too (tie_word_embeddings), where only new tokens get rows of their own"

/**
 * Which of these tokens' embedding rows the head uses to predict them: on a tied model, those of the vocabulary that may be generated.
 * In PEFT a trained row would replace the head's too; here it is read only. Without a tokenizer every row may be a token's.
 */
export function sharedRows(state: ModelState, ids: readonly number[]): number[] {
  const { parameters, headName, shape } = state.network
  if (parameters.has(`${headName}.weight`)) return []
  const suppressed = (state.generationConfig.suppress_tokens ?? []) as number[]
  const isToken = (id: number) => !state.hasTokenizer || state.tokenizer.convertIdsToTokens(id) !== null
  return ids.filter((id) => id < shape.vocabSize && !suppressed.includes(id) && isToken(id))
}

/** A copy of the base's added rows for a new adapter. */
export function giveTokenRows(state: ModelState, adapter: ModelAdapter): void {
  const rows = state.newTokens?.tokenRows
  if (rows) scope(() => adapter.setTokenRows(extended(state, rows, [], null, rows.rows.requiresGrad)))
}

/** Rows for the tokens of `old` (with their values) and those of `added` that it lacks (with the value `first`, or zeros). */
function extended(
  state: ModelState,
  old: TokenRows | null,
  added: readonly number[],
  first: Tensor | null,
  trainable: boolean,
): TokenRows {
  const known = old?.tokenIds ?? []
  const fresh = added.filter((id) => !known.includes(id))
  const rows = createTokenRows(state.network, state.network.embeddingName, [...known, ...fresh])
  const { ops } = state.device
  if (old) ops.copy(rows.rows.value.rows(0, known.length), old.rows.value)
  if (first) for (const i of fresh.keys()) ops.copy(rows.rows.value.rows(known.length + i, 1), first)
  rows.rows.requiresGrad = trainable
  return rows
}

/** Rows at a time, so that no float32 copy of the whole table is made. */
const chunk = 4096

/** float32 [1, hidden] */
function embeddingMean(state: ModelState): Tensor {
  const { device, network } = state
  const table = network.parameters.get(`${network.embeddingName}.weight`)!.value
  const [vocabulary, width] = table.shape as [number, number]
  const mean = Tensor.zeros(device, [1, width], 'float32')
  for (let start = 0; start < vocabulary; start += chunk) {
    scope(() => {
      const count = Math.min(chunk, vocabulary - start)
      const rows = Tensor.empty(device, [count, width], 'float32')
      device.ops.copy(rows, table.rows(start, count))
      const ones = Tensor.empty(device, [1, count], 'float32')
      device.ops.fill(ones, 1)
      device.ops.matmul(mean, ones, rows, 0, 0, 1 / vocabulary, 1)
    })
  }
  return mean
}

/** A padded vocabulary has logits for ids that no token had: the new ones must not be chosen. */
export function suppress(state: ModelState, ids: readonly number[]): void {
  const predictable = ids.filter((id) => id < state.network.shape.vocabSize)
  if (predictable.length === 0) return
  const known = (state.generationConfig.suppress_tokens ?? []) as number[]
  state.generationConfig.suppress_tokens = [...new Set([...known, ...predictable])]
}
