/**
 * What another part costs beside its tokens (its operations are queued and its weights read once more), in tokens: so that a part is
 * not made to save a token or two.
 */
const COST_OF_A_PART = 16

/**
 * Splits a prefix tree at branch points into parts of at most `maxTokens` tokens, each a tree of its own that begins at the root: what
 * samples of different parts share is computed once in each. Among the parts of samples that are neighbours in the tree (depth first),
 * those with the fewest tokens in all are chosen. A sample that is longer than `maxTokens` stands alone.
 *
 * @param sampleRows - for each sample its rows of the tree's stream, as in a batch
 * @returns the samples of each part, ascending
 */
export function splitPrefixTree(sampleRows: readonly Int32Array[], maxTokens: number): number[][] {
  const order = sampleRows.map((_, i) => i).sort((a, b) => compareRows(sampleRows[a]!, sampleRows[b]!) || a - b)
  const added = order.map((sample, i) => {
    const rows = sampleRows[sample]!
    return { whole: rows.length, own: rows.length - (i > 0 ? sharedRows(sampleRows[order[i - 1]!]!, rows) : 0) }
  })
  // cheapest[i]: the least cost of the first i samples; from[i]: where the last of their parts begins.
  const cheapest = [0]
  const from = [0]
  for (let end = 1; end <= order.length; end++) {
    let within = 0
    cheapest[end] = Number.POSITIVE_INFINITY
    for (let first = end - 1; first >= 0; first--) {
      const tokens = within + added[first]!.whole
      if (tokens > maxTokens && first < end - 1) break
      const cost = cheapest[first]! + tokens + COST_OF_A_PART
      if (cost < cheapest[end]!) {
        cheapest[end] = cost
        from[end] = first
      }
      within += added[first]!.own
    }
  }
  const parts: number[][] = []
  for (let end = order.length; end > 0; end = from[end]!) parts.push(order.slice(from[end]!, end).sort((a, b) => a - b))
  return parts.reverse()
}

/** Tokens that two samples share: rows of the stream that both have. They part at one place, as they lie in a tree. */
function sharedRows(a: Int32Array, b: Int32Array): number {
  let low = 0
  let high = Math.min(a.length, b.length)
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (a[middle - 1] === b[middle - 1]) low = middle
    else high = middle - 1
  }
  return low
}

/** Depth-first order of the samples' ends; a sample that is the beginning of another comes before it. */
function compareRows(a: Int32Array, b: Int32Array): number {
  const shared = sharedRows(a, b)
  if (shared === a.length || shared === b.length) return a.length - b.length
  return a[shared]! - b[shared]!
}
