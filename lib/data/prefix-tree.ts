/**
 * A compressed trie over the samples of a batch: samples that begin with the same keys share those tokens once. A key stands for a
 * token and whatever else must agree for two samples to share it (see {@link buildPrefixTree}).
 */
interface Segment {
  /** The sample whose keys spell this segment: keys[sample][from .. to). */
  sample: number
  from: number
  to: number
  /** Children by their first key, in the order in which samples brought them. */
  children: Map<number, Segment>
}

/** The stream of a batch: all segments depth first. */
export interface PrefixTree {
  /** Number of tokens of the stream. */
  length: number
  /** Row of the stream → the sample and the index in it that the token comes from. */
  sourceSample: Int32Array
  sourceIndex: Int32Array
  /** End of the subtree of each row's segment. */
  end: Int32Array
  /** For each sample the rows of its tokens, in order. */
  sampleRows: Int32Array[]
}

function insert(root: Segment, keys: readonly Int32Array[], sample: number): void {
  const own = keys[sample]!
  let parent = root
  let at = 0
  while (at < own.length) {
    const child = parent.children.get(own[at]!)
    if (!child) {
      parent.children.set(own[at]!, { sample, from: at, to: own.length, children: new Map() })
      return
    }
    const theirs = keys[child.sample]!
    let same = at + 1
    const limit = Math.min(child.to, own.length)
    while (same < limit && own[same] === theirs[same]) same++
    // A sample that ends inside a segment needs no split: what it sees of the segment is the same either way.
    if (same === own.length) return
    if (same < child.to) {
      const rest: Segment = { sample: child.sample, from: same, to: child.to, children: child.children }
      child.to = same
      child.children = new Map([[theirs[same]!, rest]])
    }
    parent = child
    at = same
  }
}

/** Assigns rows depth first; an explicit stack, as a tree may be as deep as it has samples. */
function layOut(root: Segment): Omit<PrefixTree, 'sampleRows'> & { rowOf: Map<Segment, number> } {
  const order: { segment: Segment; row: number; next: Iterator<Segment> }[] = []
  const rowOf = new Map<Segment, number>()
  const ends = new Map<Segment, number>()
  let row = 0
  order.push({ segment: root, row: 0, next: root.children.values() })
  while (order.length > 0) {
    const top = order[order.length - 1]!
    const child = top.next.next()
    if (child.done) {
      ends.set(top.segment, row)
      order.pop()
      continue
    }
    rowOf.set(child.value, row)
    row += child.value.to - child.value.from
    order.push({ segment: child.value, row, next: child.value.children.values() })
  }
  const sourceSample = new Int32Array(row)
  const sourceIndex = new Int32Array(row)
  const end = new Int32Array(row)
  for (const [segment, first] of rowOf) {
    const count = segment.to - segment.from
    sourceSample.fill(segment.sample, first, first + count)
    end.fill(ends.get(segment)!, first, first + count)
    for (let i = 0; i < count; i++) sourceIndex[first + i] = segment.from + i
  }
  return { length: row, sourceSample, sourceIndex, end, rowOf }
}

function rowsOfSample(root: Segment, own: Int32Array, rowOf: ReadonlyMap<Segment, number>): Int32Array {
  const rows = new Int32Array(own.length)
  let parent = root
  let at = 0
  while (at < own.length) {
    const child = parent.children.get(own[at]!)!
    const first = rowOf.get(child)!
    const to = Math.min(child.to, own.length)
    for (let i = at; i < to; i++) rows[i] = first + i - child.from
    at = to
    parent = child
  }
  return rows
}

/**
 * Builds the tree over `keys` (one array per sample; equal keys at equal depth after equal prefixes are one token). With `share` false
 * every sample is a root of its own. Order is that of the samples, so equal input gives an equal stream.
 */
export function buildPrefixTree(keys: readonly Int32Array[], share: boolean): PrefixTree {
  if (!share) return buildForest(keys)
  const root: Segment = { sample: -1, from: 0, to: 0, children: new Map() }
  for (let sample = 0; sample < keys.length; sample++) insert(root, keys, sample)
  const { rowOf, ...stream } = layOut(root)
  return { ...stream, sampleRows: keys.map((own) => rowsOfSample(root, own, rowOf)) }
}

function buildForest(keys: readonly Int32Array[]): PrefixTree {
  const length = keys.reduce((sum, own) => sum + own.length, 0)
  const tree: PrefixTree = {
    length,
    sourceSample: new Int32Array(length),
    sourceIndex: new Int32Array(length),
    end: new Int32Array(length),
    sampleRows: [],
  }
  let row = 0
  for (const [sample, own] of keys.entries()) {
    const rows = new Int32Array(own.length)
    tree.sourceSample.fill(sample, row, row + own.length)
    tree.end.fill(row + own.length, row, row + own.length)
    for (let i = 0; i < own.length; i++) {
      tree.sourceIndex[row + i] = i
      rows[i] = row + i
    }
    tree.sampleRows.push(rows)
    row += own.length
  }
  return tree
}
