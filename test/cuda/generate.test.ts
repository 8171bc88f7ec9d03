// Generation on the GPU (or its emulation) says what it says on the CPU, token for token: greedy, drawn and by beams, a batch of
// prompts of different lengths at once. Runs on QUANTUNE_TEST_DEVICE where that is cuda or cuda-emulated.
import t from 'tap'
import { type GenerationConfig, Generator } from '../../lib/generation/index.js'
import { Model } from '../../lib/model/model.js'
import { golden } from '../unit/model/goldens.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const skip = name.startsWith('cuda') ? false : 'needs QUANTUNE_TEST_DEVICE=cuda or cuda-emulated'

const prompts = [[1, 403, 407], [1, 403, 407, 261, 378], [1]].map((inputIds) => ({ inputIds }))
const cases: Record<string, GenerationConfig> = {
  greedy: { maxNewTokens: 8 },
  'drawn from all': { maxNewTokens: 6, doSample: true, topK: 0, seed: 4 },
  'drawn, every filter': { maxNewTokens: 6, doSample: true, temperature: 1.3, topK: 40, topP: 0.9, minP: 0.02, seed: 5 },
  'beams with processors': {
    maxNewTokens: 5,
    numBeams: 3,
    numReturnSequences: 2,
    repetitionPenalty: 1.2,
    noRepeatNgramSize: 2,
    suppressTokens: [261],
  },
}

async function generate(device: string) {
  await using model = await Model.fromPretrained(golden('models/stories260k'), { device: device as 'cpu', dtype: 'float32' })
  const generator = new Generator(model)
  const results: Record<string, { tokenIds: number[]; score?: number }[]> = {}
  for (const [what, config] of Object.entries(cases)) {
    const generated = await generator.generate(prompts, config)
    results[what] = generated.flatMap((one) => [one, ...(one.alternatives ?? [])])
  }
  await generator.dispose()
  return results
}

t.test('generation says what it says on the CPU', { skip }, async (t) => {
  const [there, here] = [await generate(name), await generate('cpu')]
  for (const what of Object.keys(cases)) {
    t.strictSame(
      there[what]!.map(({ tokenIds }) => tokenIds),
      here[what]!.map(({ tokenIds }) => tokenIds),
      what,
    )
    for (const [i, { score }] of here[what]!.entries())
      if (score !== undefined) t.ok(Math.abs(there[what]![i]!.score! - score) < 1e-4, `score ${score}`)
  }
})
