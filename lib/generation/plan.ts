/** What a group of prompts may take while it is generated for. */
export interface GroupLimits {
  /** Sequences (beams counted) decoded together. */
  rows: number
  /** Prompt tokens (shared ones once) in the cache. */
  promptTokens: number
  /** Prompt tokens (shared ones once) computed in one pass. */
  prefillTokens: number
}

/** Prompts that are decoded together, in passes of prompts whose tokens are computed together. */
export interface Group {
  chunks: number[][]
}

/**
 * Divides prompts into groups. Prompts with common beginnings stay side by side, so that those are computed once: sorted by their
 * token ids, a prompt adds to the tree of its predecessors exactly what it does not share with the one before.
 * @param rowsPerPrompt sequences that each prompt starts
 * @returns indices into `prompts`
 */
export function planGroups(prompts: readonly Int32Array[], rowsPerPrompt: number, limits: GroupLimits): Group[] {
  const order = prompts.map((_, i) => i).sort((a, b) => compareIds(prompts[a]!, prompts[b]!) || a - b)
  const groups: Group[] = []
  let rows = 0
  let groupTokens = 0
  let chunkTokens = 0
  let previous: Int32Array | null = null
  for (const index of order) {
    const ids = prompts[index]!
    let added = ids.length - (previous ? commonPrefix(previous, ids) : 0)
    if (groups.length === 0 || rows + rowsPerPrompt > limits.rows || groupTokens + added > limits.promptTokens) {
      groups.push({ chunks: [[]] })
      rows = groupTokens = chunkTokens = 0
      added = ids.length
    } else if (chunkTokens + added > limits.prefillTokens) {
      groups.at(-1)!.chunks.push([])
      chunkTokens = 0
      added = ids.length
    }
    groups.at(-1)!.chunks.at(-1)!.push(index)
    rows += rowsPerPrompt
    groupTokens += added
    chunkTokens += added
    previous = ids
  }
  return groups
}

function commonPrefix(a: Int32Array, b: Int32Array): number {
  const length = Math.min(a.length, b.length)
  let i = 0
  while (i < length && a[i] === b[i]) i++
  return i
}

function compareIds(a: Int32Array, b: Int32Array): number {
  const i = commonPrefix(a, b)
  if (i === a.length || i === b.length) return a.length - b.length
  return a[i]! - b[i]!
}
