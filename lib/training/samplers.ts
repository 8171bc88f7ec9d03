import { Random } from './random.js'

/** How the samples of an epoch are ordered. */
export type SamplingStrategy = 'random' | 'sequential' | 'group_by_length' | 'group_by_prefix'

/**
 * The order of one epoch: a pure function of (seed, epoch), so that a checkpoint need only hold those and the position. Returns
 * sample indices.
 */
export type Sampler = (epoch: number) => Uint32Array

export function sequentialSampler(length: number): Sampler {
  return () => Uint32Array.from({ length }, (_, i) => i)
}

export function randomSampler(length: number, seed: number): Sampler {
  return (epoch) => new Random(seed, epoch).shuffle(Uint32Array.from({ length }, (_, i) => i))
}

/**
 * Neighbours have about the same length: random order, then sorted by falling length within megabatches of up to 50 batches, the
 * longest sample of all first, so that running out of memory happens early (transformers' `LengthGroupedSampler`).
 *
 * @param lengths - of each sample, in any unit
 * @param batchSize - samples of an optimizer step
 */
export function lengthGroupedSampler(lengths: ArrayLike<number>, batchSize: number, seed: number): Sampler {
  const size = batchSize * Math.max(1, Math.min(Math.floor(lengths.length / (batchSize * 4)), 50))
  const random = randomSampler(lengths.length, seed)
  return (epoch) => {
    const order = random(epoch)
    let longest = 0
    for (let start = 0; start < order.length; start += size) {
      // Typed arrays sort by the comparison alone, stably, so equal lengths stay in random order.
      order.subarray(start, start + size).sort((a, b) => lengths[b]! - lengths[a]!)
      if (lengths[order[start]!]! > lengths[order[longest]!]!) longest = start
    }
    if (order.length) [order[0], order[longest]] = [order[longest]!, order[0]!]
    return order
  }
}

/**
 * Samples of one group stay together: the groups are shuffled, and the samples within each.
 *
 * @param groups - the group of each sample, such as what {@link prefixGroups} finds
 */
export function groupedSampler(groups: ArrayLike<number | string>, seed: number): Sampler {
  const members = new Map<number | string, number[]>()
  for (let i = 0; i < groups.length; i++) {
    const group = members.get(groups[i]!)
    if (group) group.push(i)
    else members.set(groups[i]!, [i])
  }
  return (epoch) => {
    const random = new Random(seed, epoch)
    const order = new Uint32Array(groups.length)
    let at = 0
    for (const group of random.shuffle([...members.values()])) {
      order.set(random.shuffle(Uint32Array.from(group)), at)
      at += group.length
    }
    return order
  }
}

/**
 * Groups samples that begin alike: sorted, two neighbours belong together when they share more than half of what is left of the
 * shorter after the beginning that all samples have in common (an instruction, say).
 *
 * @param texts - of the samples, from their beginning
 * @returns the group of each sample
 */
export function prefixGroups(texts: readonly string[]): Uint32Array {
  const groups = new Uint32Array(texts.length)
  if (texts.length === 0) return groups
  const order = texts.map((_, i) => i).sort((a, b) => (texts[a]! < texts[b]! ? -1 : texts[a]! > texts[b]! ? 1 : a - b))
  const common = sharedLength(texts[order[0]!]!, texts[order[order.length - 1]!]!)
  let group = 0
  for (let i = 1; i < order.length; i++) {
    const [a, b] = [texts[order[i - 1]!]!, texts[order[i]!]!]
    const own = Math.min(a.length, b.length) - common
    if ((sharedLength(a, b) - common) * 2 <= own && a !== b) group++
    groups[order[i]!] = group
  }
  return groups
}

function sharedLength(a: string, b: string): number {
  const end = Math.min(a.length, b.length)
  let i = 0
  while (i < end && a.charCodeAt(i) === b.charCodeAt(i)) i++
  return i
}
