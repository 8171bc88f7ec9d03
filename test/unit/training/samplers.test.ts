import t from 'tap'
import { Random } from '../../../lib/training/random.js'
import {
  groupedSampler,
  lengthGroupedSampler,
  prefixGroups,
  randomSampler,
  sequentialSampler,
} from '../../../lib/training/samplers.js'

const sorted = (order: Uint32Array) => [...order].sort((a, b) => a - b)
const all = (n: number) => Array.from({ length: n }, (_, i) => i)

t.test('the generator repeats, and every key counts', async (t) => {
  const draw = (...keys: number[]) => new Random(...keys).uint32()
  t.equal(draw(42, 0), draw(42, 0))
  t.equal(new Set([draw(42), draw(43), draw(42, 0), draw(42, 1), draw(0, 42), draw(42 + 2 ** 40), draw(-42)]).size, 7)
  // A fixed value: a change of the generator would silently change the order of every resumed run.
  const random = new Random(42, 0)
  t.same([random.uint32(), random.uint32(), random.uint32()], [3051148251, 1564368907, 3091616887])
  const counts = new Uint32Array(3)
  for (let i = 0; i < 30_000; i++) counts[random.integer(3)]!++
  for (const count of counts) t.ok(Math.abs(count - 10_000) < 400, `${count} of 30000`)
})

t.test('every sampler visits every sample once, by seed and epoch', async (t) => {
  const lengths = all(37).map((i) => (i * 7) % 11)
  const groups = all(37).map((i) => i % 5)
  for (const make of [
    randomSampler.bind(null, 37),
    lengthGroupedSampler.bind(null, lengths, 4),
    groupedSampler.bind(null, groups),
  ]) {
    const sampler = make(1)
    t.same(sorted(sampler(0)), all(37))
    t.same(sampler(3), make(1)(3), 'repeats')
    t.notSame(sampler(0), sampler(1), 'epochs differ')
    t.notSame(sampler(0), make(2)(0), 'seeds differ')
  }
  t.same([...sequentialSampler(4)(9)], [0, 1, 2, 3])
  t.same([...randomSampler(0, 1)(0)], [])
  t.same([...lengthGroupedSampler([], 4, 1)(0)], [])
})

t.test('group_by_length: the longest first, neighbours alike', async (t) => {
  const lengths = all(64).map((i) => (i * 37) % 64)
  const order = lengthGroupedSampler(lengths, 4, 7)(0)
  t.equal(lengths[order[0]!], 63)
  const inOrder = [...order].map((i) => lengths[i]!)
  const steps = inOrder.slice(1).filter((length, i) => length > inOrder[i]!).length
  t.ok(steps <= 4, `${steps} rises: falling within each of four megabatches`)
})

t.test('group_by_prefix: a group stays together', async (t) => {
  const groups = all(40).map((i) => `context ${i % 8}`)
  const order = groupedSampler(groups, 3)(0)
  const changes = [...order].slice(1).filter((sample, i) => groups[sample] !== groups[order[i]!]).length
  t.equal(changes, 7)
  t.notSame(order.slice(0, 5), sorted(order.slice(0, 5)), 'and is shuffled')
})

t.test('prefixGroups finds the contexts below a shared instruction', async (t) => {
  const instruction = 'Answer from the context, or say ?. '.repeat(5)
  const texts = all(30).map((i) => `${instruction}Context ${i % 6}: ${`fact ${i % 6} `.repeat(20)} Question ${i}?`)
  const groups = prefixGroups(texts)
  for (const i of all(30)) for (const j of all(30)) if ((groups[i] === groups[j]) !== (i % 6 === j % 6)) t.fail(`${i} ${j}`)
  t.equal(new Set(groups).size, 6)
  t.same([...prefixGroups(['a', 'a', 'b'])], [0, 0, 1])
  t.same([...prefixGroups([])], [])
})
