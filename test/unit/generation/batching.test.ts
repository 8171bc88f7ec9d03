import fc from 'fast-check'
import t from 'tap'
import { type Generation, type GenerationConfig, Generator } from '../../../lib/generation/index.js'
import { trieSize } from '../../../lib/generation/prompt-queue.js'
import { Model } from '../../../lib/model/model.js'
import { countOperations } from '../../support/operations.js'

const shape = { hidden_size: 16, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 24, num_hidden_layers: 2 }
const config = { model_type: 'llama', vocab_size: 17, max_position_embeddings: 128, initializer_range: 0.5, ...shape }
const model = await Model.fromConfig(config, { device: 'cpu', dtype: 'float32', seed: 3 })
const generator = new Generator(model)
t.teardown(() => model.dispose())

const NEAR = 1e-5

/** How much more likely the best token is than the second best behind these tokens. */
async function gapBehind(inputIds: readonly number[], a: number, b: number): Promise<number> {
  const result = model.forward(
    {
      inputIds: Int32Array.from(inputIds),
      positions: Int32Array.from(inputIds, (_, i) => i),
      end: new Int32Array(inputIds.length).fill(inputIds.length),
      targetRows: new Int32Array(0),
      targetIds: new Int32Array(0),
      sampleRows: [],
    },
    { outputRows: Int32Array.of(inputIds.length - 1) },
  )
  const logits = result.logits()
  const values = (await logits.data()) as Float32Array
  logits.dispose()
  result.dispose()
  return Math.abs(values[a]! - values[b]!)
}

/** Token for token the same; or at the first difference, two candidates that are as good as equal. */
async function same(prompt: Int32Array, one: Generation, other: Generation, options: GenerationConfig): Promise<boolean> {
  const sequences = [one, other].map((generation) => [generation, ...(generation.alternatives ?? [])])
  if (sequences[0]!.length !== sequences[1]!.length) return false
  for (const [i, a] of sequences[0]!.entries()) {
    const b = sequences[1]![i]!
    if (Math.abs((a.score ?? 0) - (b.score ?? 0)) > NEAR * 10) return false
    const at = a.tokenIds.findIndex((id, k) => id !== b.tokenIds[k])
    if (at < 0 && a.tokenIds.length === b.tokenIds.length && a.finishReason === b.finishReason) continue
    if (a.score !== undefined || at < 0) return false
    if (options.repetitionPenalty !== 1 || options.noRepeatNgramSize !== 0) return false
    const gap = await gapBehind([...prompt, ...a.tokenIds.slice(0, at)], a.tokenIds[at]!, b.tokenIds[at]!)
    if (gap > NEAR) return false
  }
  return true
}

const prompts = fc.array(
  fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 12 }).map((list) => Int32Array.from(list)),
  { minLength: 2, maxLength: 9 },
)
const common = {
  maxNewTokens: fc.integer({ min: 1, max: 40 }),
  minNewTokens: fc.constantFrom(0, 0, 1),
  eosTokenId: fc.subarray([3, 5, 7, 9], { maxLength: 3 }),
  repetitionPenalty: fc.constantFrom(1, 1, 1.3),
  noRepeatNgramSize: fc.constantFrom(0, 0, 3),
}
const greedy = fc.record(common)
const beams = fc.record({
  ...common,
  numBeams: fc.integer({ min: 2, max: 4 }),
  numReturnSequences: fc.integer({ min: 1, max: 2 }),
})
const drawn = fc.record({
  ...common,
  doSample: fc.constant(true),
  seed: fc.nat(1000),
  numReturnSequences: fc.integer({ min: 1, max: 3 }),
})
const bounds = fc.record({ maxBatchSize: fc.integer({ min: 1, max: 7 }), maxCacheTokens: fc.integer({ min: 1, max: 300 }) })

for (const [name, kind] of Object.entries({ greedy, beams, drawn })) {
  t.test(`${name}: prompts that wait for room get what each gets alone`, async (t) => {
    let waited = 0
    await fc.assert(
      fc.asyncProperty(prompts, kind as fc.Arbitrary<GenerationConfig>, bounds, async (list, options, limits) => {
        const width = Math.max(options.numBeams ?? 1, options.numReturnSequences ?? 1)
        if (list.length * width > limits.maxBatchSize) waited++
        const inputs = list.map((inputIds) => ({ inputIds }))
        const together = await generator.generate(inputs, { ...options, ...limits })
        for (const [i, input] of inputs.entries()) {
          const alone = await generator.generate(input, options)
          if (!(await same(input.inputIds, together[i]!, alone, options))) return false
        }
        return true
      }),
      { numRuns: 40 },
    )
    t.ok(waited > 15, `${waited} batches did not fit at once`)
  })
}

const tokensOf = (shapes: readonly (readonly number[])[]) => shapes.map(([rows]) => rows!)

t.test('every beginning is computed once, whatever the bounds', async (t) => {
  const instruction = [0, 1, 2, 0, 1, 2, 0, 1]
  const list = [3, 4, 5].flatMap((context) =>
    [6, 7, 8].map((question) => Int32Array.of(...instruction, context, context, question)),
  )
  t.equal(trieSize(list), 8 + 3 * 2 + 9)
  const inputs = list.map((inputIds) => ({ inputIds }))
  for (const limits of [{}, { maxBatchSize: 1 }, { maxBatchSize: 2 }, { maxBatchSize: 4, maxCacheTokens: 40 }]) {
    const operations = await countOperations(model.device, ['embedding'], () =>
      generator.generate(inputs, { maxNewTokens: 1, eosTokenId: [], ...limits }),
    )
    // With one new token there are no steps: all that is embedded are prompts.
    const computed = tokensOf(operations.embedding!.map(([y]) => y!)).reduce((sum, rows) => sum + rows, 0)
    t.equal(computed, trieSize(list), JSON.stringify(limits))
  }
  const twice = await countOperations(model.device, ['embedding'], () =>
    generator.generate([...inputs, ...inputs], { maxNewTokens: 1, eosTokenId: [], maxBatchSize: 2 }),
  )
  const computed = tokensOf(twice.embedding!.map(([y]) => y!)).reduce((sum, rows) => sum + rows, 0)
  // A prompt that comes twice but not in one pass has its last token computed again: its output is not kept, its keys are.
  t.ok(computed <= trieSize(list) + list.length, `${computed} tokens`)
})

t.test('lanes are free, but the cache is full', async (t) => {
  const inputs = [0, 1, 2].map((first) => ({ inputIds: Array.from({ length: 20 }, (_, i) => (first + i) % 3) }))
  for (const options of [{ numBeams: 2 }, { doSample: true, seed: 1, numReturnSequences: 2 }]) {
    const all = await generator.generate(inputs, { ...options, maxNewTokens: 4, eosTokenId: [] })
    // Three lanes of two sequences with four tokens each leave 26 tokens for prompts of 20.
    const bounded = await generator.generate(inputs, { ...options, maxNewTokens: 4, eosTokenId: [], maxCacheTokens: 50 })
    t.same(
      bounded.map(({ tokenIds }) => tokenIds),
      all.map(({ tokenIds }) => tokenIds),
    )
  }
})

t.test('memory stays within the bound, and a free place is taken at once', async (t) => {
  const inputs = Array.from({ length: 24 }, (_, i) => ({ inputIds: [i % 3, Math.floor(i / 3) % 3, Math.floor(i / 9), 1] }))
  const bytes = 2 * 2 * 2 * 4 * 4 // of a token: keys and values of 2 layers, 2 heads of 4 float32
  const options = { maxNewTokens: 30, eosTokenId: [3, 5], maxBatchSize: 6 }
  const all = await generator.generate(inputs, options)
  for (const maxCacheTokens of [60, 120]) {
    await model.device.settled()
    model.device.resetPeak()
    const before = model.memoryUsage().current.cache
    const bounded = await generator.generate(inputs, { ...options, maxCacheTokens })
    t.same(bounded, all)
    const { peak } = model.memoryUsage()
    // Beside keys and values there are tables of int32.
    t.ok(peak.cache - before < maxCacheTokens * bytes + 4000, `${peak.cache - before} bytes for ${maxCacheTokens} tokens`)
  }

  // In batches of six, each would take as many steps as its longest answer.
  const lengths = all.map(({ tokenIds }) => tokenIds.length)
  const inGroups = [0, 6, 12, 18].reduce((sum, from) => sum + Math.max(...lengths.slice(from, from + 6)), 0)
  let steps = 0
  const replay = model.device.replay
  model.device.replay = (program) => {
    steps++
    replay.call(model.device, program)
  }
  await generator.generate(inputs, options)
  model.device.replay = replay
  t.ok(steps < 0.8 * inGroups, `${steps} steps instead of ${inGroups}`)
})
