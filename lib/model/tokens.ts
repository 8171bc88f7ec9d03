import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { parseOptions } from '../options.js'
import type { TokenRows } from '../peft/adapter.js'
import { checkHead, createTokenRows, isTied } from '../peft/token-rows.js'
import { TokensAdapter } from '../peft/tokens.js'
import { scope, Tensor } from '../tensor/index.js'
import type { ModelAdapter, ModelState } from './state.js'

export interface AddTokensOptions {
  /** Train the rows. Default: true. */
  trainable?: boolean
  /**
   * Whether the model may generate them. true: they have trained rows in the head too, which are those of the embedding on a model whose
   * head is tied to it. false (default): they have no row in the head and are never generated.
   */
  predictable?: boolean
  /** The first values of new tokens' rows: the mean of all rows (default), or zeros. Tokens of the vocabulary start from their own. */
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
 * rows of their own too, which stand in for the base's.
 * @returns the tokens' ids
 */
export function addTokens(state: ModelState, tokens: readonly string[], options: AddTokensOptions | undefined): number[] {
  const { trainable, predictable, initFrom } = parseOptions(optionsSchema, options, 'AddTokensOptions')
  if (!Array.isArray(tokens) || tokens.length === 0) throw invalidArgument('addTokens: expected a list of one token or more')
  // Every adapter gets other parameters, and the head other outputs.
  state.calls.refuseWhileBusy('addTokens')
  const known = tokens.map((token) => state.tokenizer.convertTokensToIds(token)).filter((id) => id !== null)
  if (predictable) for (const adapter of [null, ...state.adapters.values()]) checkHead(state.network, adapter)
  else refusePredicted(state, known)
  const ids = state.tokenizer.addTokens(tokens)
  const added = [...new Set(ids)]
  giveToAll(state, { added, predictable: predictable ? added : [], known, initFrom, trainable })
  if (predictable) allow(state, added)
  else suppress(state, added)
  return ids
}

interface Plan {
  added: readonly number[]
  /** Those of the added tokens that the head gets rows for. */
  predictable: readonly number[]
  /** Tokens that have rows in the base. */
  known: readonly number[]
  initFrom: 'mean' | 'zeros'
  trainable: boolean
}

function giveToAll(state: ModelState, plan: Plan): void {
  scope(() => {
    for (const adapter of state.adapters.values()) adapter.setTokenRows(extended(state, adapter.tokenRows, plan))
    const rows = extended(state, state.newTokens?.tokenRows ?? null, plan)
    if (state.newTokens) state.newTokens.setTokenRows(rows)
    else state.newTokens = new TokensAdapter(NEW_TOKENS, rows)
  })
}

/** What may be generated stays so: a trained row on a tied model is the head's too, and a head's own row would be lost. */
function refusePredicted(state: ModelState, known: readonly number[]): void {
  const { shape } = state.network
  const suppressed = (state.generationConfig.suppress_tokens ?? []) as number[]
  const owners = [...state.adapters.values(), state.newTokens]
  const id = known.find((id) => {
    if (owners.some((owner) => owner?.tokenRows?.head?.tokenIds.includes(id))) return true
    return isTied(state.network) && id < shape.vocabSize && !suppressed.includes(id)
  })
  if (id === undefined) return
  const token = JSON.stringify(state.tokenizer.convertIdsToTokens(id))
  throw invalidArgument(
    `addTokens: ${token} is a token that the model generates, by the row that would be trained; say { predictable: true }, or add a new token`,
  )
}

/** A copy of the base's added rows for a new adapter. */
export function giveTokenRows(state: ModelState, adapter: ModelAdapter): void {
  const rows = state.newTokens?.tokenRows
  if (!rows) return
  if (rows.head) checkHead(state.network, adapter)
  const plan = { added: [], predictable: [], known: [], initFrom: 'zeros', trainable: rows.rows.requiresGrad } as const
  scope(() => adapter.setTokenRows(extended(state, rows, plan)))
}

/** Rows for the tokens of `old`, with their values, and for those of `added` that it lacks. */
function extended(
  state: ModelState,
  old: TokenRows | null,
  { added, predictable, known, initFrom, trainable }: Plan,
): TokenRows {
  const { network } = state
  const union = (before: readonly number[], more: readonly number[]) => [...new Set([...before, ...more])]
  const tokenIds = union(old?.tokenIds ?? [], added)
  const predicted = union(old?.head?.tokenIds ?? [], predictable)
  const rows = createTokenRows(network, tokenIds, { predictable: predicted })
  const first = (table: Tensor) => (initFrom === 'mean' ? meanRow(table) : null)
  const embedding = network.parameters.get(`${network.embeddingName}.weight`)!.value
  fillRows(rows.rows.value, embedding, { old: old?.rows.value, from: old?.tokenIds, tokenIds, known, first })
  rows.rows.requiresGrad = trainable
  if (rows.head && rows.head.rows !== rows.rows) {
    const weight = network.linearLayers.get(network.headName)!.weight.value
    fillRows(rows.head.rows.value, weight, {
      old: old?.head?.rows.value,
      from: old?.head?.tokenIds,
      tokenIds: predicted,
      known,
      first,
    })
    rows.head.rows.requiresGrad = trainable
  }
  return rows
}

interface Filling {
  /** Rows that there were, and their tokens: the first ones of `tokenIds`. */
  old: Tensor | undefined
  from: readonly number[] | undefined
  tokenIds: readonly number[]
  known: readonly number[]
  first: (table: Tensor) => Tensor | null
}

function fillRows(rows: Tensor, table: Tensor, { old, from = [], tokenIds, known, first }: Filling): void {
  const { ops } = rows.device
  if (old) ops.copy(rows.rows(0, from.length), old)
  const fresh = tokenIds.slice(from.length)
  if (fresh.length === 0) return
  const start = fresh.every((id) => known.includes(id) && id < table.shape[0]!) ? null : first(table)
  for (const [i, id] of fresh.entries()) {
    const row = rows.rows(from.length + i, 1)
    if (known.includes(id) && id < table.shape[0]!) ops.copy(row, table.rows(id, 1))
    else if (start) ops.copy(row, start)
  }
}

/** Rows at a time, so that no float32 copy of the whole table is made. */
const chunk = 4096

/** The mean of a table's rows, float32 [1, hidden]. */
function meanRow(table: Tensor): Tensor {
  const { device } = table
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
  const inVocabulary = ids.filter((id) => id < state.network.shape.vocabSize)
  if (inVocabulary.length === 0) return
  const known = (state.generationConfig.suppress_tokens ?? []) as number[]
  state.generationConfig.suppress_tokens = [...new Set([...known, ...inVocabulary])]
}

function allow(state: ModelState, ids: readonly number[]): void {
  const known = state.generationConfig.suppress_tokens as number[] | undefined
  if (!known?.some((id) => ids.includes(id))) return
  state.generationConfig.suppress_tokens = known.filter((id) => !ids.includes(id))
}
