import t from 'tap'
import { streamSeed } from '../../../lib/generation/choose.js'

t.test('a stream depends on the seed, the prompt and the rank, and on nothing else', async (t) => {
  const prompts = [Int32Array.of(1), Int32Array.of(1, 2), Int32Array.of(2, 1), Int32Array.of(0), Int32Array.of(0, 0)]
  const seeds = new Set<number>()
  for (const seed of [0, 1, 2 ** 40]) {
    for (const prompt of prompts) {
      for (const rank of [0, 1, 2]) {
        const value = streamSeed(seed, prompt, rank)
        t.equal(value, streamSeed(seed, prompt.slice(), rank))
        t.equal(value, value | 0)
        seeds.add(value)
      }
    }
  }
  t.equal(seeds.size, 45)
})
