/**
 * Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet), trained deterministically: the most
 * frequent pair is merged first, ties go to the pair that is smaller as text.
 */

/**
 * Words and other signs with the space before them, numbers, white space: GPT-2's pattern, but that a number never takes the space, so
 * that it is spelt the same after one and after a quote.
 */
export const PATTERN = String.raw` ?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const WORDS = new RegExp(PATTERN, 'gu')

/** GPT-2's printable stand-ins for the 256 bytes. */
export function byteAlphabet(): string[] {
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255)
  let next = 256
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++))
}

export interface BpeModel {
  /** Token text to id: the 256 bytes first, then one token a merge. */
  vocab: Record<string, number>
  merges: [string, string][]
}

/** Learns merges until the vocabulary has `vocabSize` tokens or no pair occurs twice. */
export function trainBpe(texts: Iterable<string>, vocabSize: number): BpeModel {
  const alphabet = byteAlphabet()
  const counts = new Map<string, number>()
  for (const text of texts) for (const [word] of text.matchAll(WORDS)) counts.set(word, (counts.get(word) ?? 0) + 1)
  const encoder = new TextEncoder()
  const words = [...counts].map(([word, count]) => ({ count, parts: Array.from(encoder.encode(word), (b) => alphabet[b]!) }))

  const vocab: Record<string, number> = Object.fromEntries([...alphabet].sort().map((symbol, id) => [symbol, id]))
  const merges: [string, string][] = []
  for (let size = 256; size < vocabSize; size++) {
    const best = mostFrequentPair(words)
    if (!best) break
    merges.push(best)
    vocab[best[0] + best[1]] = size
    for (const word of words) merge(word.parts, best)
  }
  return { vocab, merges }
}

function mostFrequentPair(words: readonly { count: number; parts: string[] }[]): [string, string] | null {
  const pairs = new Map<string, number>()
  for (const { count, parts } of words) {
    for (let i = 1; i < parts.length; i++) {
      const pair = `${parts[i - 1]} ${parts[i]}`
      pairs.set(pair, (pairs.get(pair) ?? 0) + count)
    }
  }
  let best: string | null = null
  let most = 1
  for (const [pair, count] of pairs) {
    if (count > most || (count === most && best !== null && pair < best)) {
      best = pair
      most = count
    }
  }
  return best === null ? null : (best.split(' ') as [string, string])
}

function merge(parts: string[], [left, right]: [string, string]): void {
  for (let i = 1; i < parts.length; i++) {
    if (parts[i - 1] === left && parts[i] === right) parts.splice(i - 1, 2, left + right)
  }
}
