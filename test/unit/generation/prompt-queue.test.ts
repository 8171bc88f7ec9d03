import fc from 'fast-check'
import t from 'tap'
import { PromptCache } from '../../../lib/generation/cache.js'
import { type AdmittedPrompt, PromptQueue, trieSize } from '../../../lib/generation/prompt-queue.js'

/** Nothing is computed here: the blocks are only counted. */
const cacheOf = (blocks: number) => new PromptCache(null as never, null as never, blocks)
const ids = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 8 }).map((list) => Int32Array.from(list))
const prompts = fc.array(ids, { minLength: 1, maxLength: 20 })
const prefixesOf = (list: readonly Int32Array[]) =>
  new Set(list.flatMap((own) => Array.from(own, (_, end) => own.slice(0, end + 1).join())))

t.test('the size of a trie is the number of distinct beginnings', async () => {
  fc.assert(fc.property(prompts, (list) => trieSize(list) === prefixesOf(list).size))
})

t.test('every prompt gets in, every beginning has one block, and no more blocks are used than there are', async () => {
  const sizes = fc.record({ spare: fc.nat(20), count: fc.integer({ min: 1, max: 6 }), tokens: fc.integer({ min: 1, max: 20 }) })
  fc.assert(
    fc.property(prompts, sizes, fc.infiniteStream(fc.nat()), (list, { spare, count, tokens }, chance) => {
      const blocks = Math.max(...list.map(({ length }) => length)) + spare
      const cache = cacheOf(blocks)
      const queue = new PromptQueue(list, cache)
      const blockOf = new Map<string, number>()
      const live: AdmittedPrompt[] = []
      const seen: number[] = []
      while (queue.waiting > 0 || live.length > 0) {
        const admitted = queue.admit(count, tokens)
        if (admitted.length === 0 && live.length === 0) return false
        for (const prompt of admitted) {
          seen.push(prompt.index)
          if (prompt.inputIds !== list[prompt.index]) return false
          for (const [t, slot] of prompt.slots.entries()) {
            const beginning = prompt.inputIds.slice(0, t + 1).join()
            // Computed once: a beginning never gets a second block.
            if ((blockOf.get(beginning) ?? slot) !== slot) return false
            if (!blockOf.has(beginning) && cache.isComputed(slot)) return false
            blockOf.set(beginning, slot)
            cache.setComputed(slot)
          }
        }
        live.push(...admitted)
        // What is in use together never shares a block by mistake.
        const inUse = new Map<number, string>()
        for (const { inputIds, slots } of live) {
          for (const [t, slot] of slots.entries()) {
            const beginning = inputIds.slice(0, t + 1).join()
            if ((inUse.get(slot) ?? beginning) !== beginning) return false
            inUse.set(slot, beginning)
          }
        }
        if (inUse.size + cache.free > blocks) return false
        if (live.length > 0) queue.release(live.splice(chance.next().value! % live.length, 1)[0]!)
      }
      return seen.length === list.length && new Set(seen).size === list.length && cache.free === blocks
    }),
    { numRuns: 300 },
  )
})
