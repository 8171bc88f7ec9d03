import { fileURLToPath } from 'node:url'
import t from 'tap'
import { passed } from './result.js'
import { describe, goldenCases, runCase } from './run.js'

const folder = fileURLToPath(new URL('../fixtures/goldens', import.meta.url))

/** Under emulation the beam searches take many minutes; test/cuda/generate.test.ts runs the same operations there. */
const isTooSlow = (name: string) => process.env.QUANTUNE_TEST_DEVICE === 'cuda-emulated' && name.startsWith('generation/')

/** Cases that need adapters which do not exist yet; one that starts to run must leave this list. */
const MISSING = ['train/adalora', 'train/ia3', 'train/prefix_tuning', 'train/prompt_tuning']

t.test('reference cases agree with PyTorch, PEFT, bitsandbytes and transformers', async (t) => {
  const cases = goldenCases(folder)
  t.ok(cases.length > 30, 'the fixtures are there')
  const missing: string[] = []
  for (const golden of cases) {
    if (isTooSlow(golden.name)) {
      t.pass(golden.name, { skip: 'too slow under emulation' })
      continue
    }
    const result = await runCase(golden)
    if ('missing' in result) missing.push(result.name)
    else t.ok(passed(result), describe(result), 'error' in result ? { error: result.error } : {})
  }
  t.same(missing.sort(), MISSING, 'cases that cannot be run yet')
})
