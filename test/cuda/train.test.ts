// A short training on the GPU (or its emulation) beside the same one on the CPU. Runs on QUANTUNE_TEST_DEVICE where that is cuda
// or cuda-emulated.
import t, { type Test } from 'tap'
import { Generator } from '../../lib/generation/index.js'
import { Model } from '../../lib/model/model.js'
import { Trainer } from '../../lib/training/trainer.js'
import type { LogEvent } from '../../lib/training/types.js'
import { golden } from '../unit/model/goldens.js'
import { collator, type Example } from '../unit/training/bigram.js'

const name = process.env.QUANTUNE_TEST_DEVICE ?? ''
const skip = name.startsWith('cuda') ? false : 'needs QUANTUNE_TEST_DEVICE=cuda or cuda-emulated'
const steps = 6
const texts = Array.from({ length: 12 }, (_, i) => ({
  inputIds: Array.from({ length: 6 + i }, (_, t) => (i * 31 + t * 7) % 250),
}))

const quantizations = {
  NF4: { type: 'nf4', doubleQuant: true },
  // So low that the small model has outliers.
  int8: { type: 'int8', threshold: 3 },
} as const

async function train(t: Test, device: string, dtype: 'float32' | 'bfloat16', weights: keyof typeof quantizations) {
  await using model = await Model.fromPretrained(golden('models/llama'), {
    device: device as 'cpu',
    dtype,
    quantization: quantizations[weights],
  })
  model.addAdapter({ type: 'lora', r: 4, loraAlpha: 8, targetModules: 'all-linear', loraDropout: 0.1, seed: 3 })
  const outputDir = t.testdir()
  const trainer = new Trainer<Example>({
    model,
    collator,
    trainDataset: texts,
    args: {
      outputDir,
      disableProgress: true,
      loggingSteps: 1,
      saveStrategy: 'no',
      maxSteps: steps,
      learningRate: 0.01,
      perDeviceTrainBatchSize: 3,
      gradientAccumulationSteps: 2,
      gradientCheckpointing: true,
    },
  })
  const logs: LogEvent[] = []
  const bytes: number[] = []
  trainer.on('log', (event) => {
    logs.push(event)
    bytes.push(model.memoryUsage().current.total)
  })
  await trainer.train()
  const { tokenIds } = await new Generator(model).generate({ inputIds: [1, 38, 45] }, { maxNewTokens: 6, doSample: false })
  return { logs, bytes, tokens: tokenIds }
}

for (const [weights, dtype, tolerance] of [
  ['NF4', 'float32', 1e-4],
  // Activations have 8 bits of mantissa: what two orders of summation may differ by, over a few steps.
  ['NF4', 'bfloat16', 2e-2],
  // An input on the border between two codes may fall to either side.
  ['int8', 'float32', 1e-3],
  ['int8', 'bfloat16', 2e-2],
] as const) {
  t.test(`${weights} and LoRA, ${dtype}: the loss curve is the CPU's`, { skip }, async (t) => {
    const there = await train(t, name, dtype, weights)
    const here = await train(t, 'cpu', dtype, weights)
    t.equal(there.logs.length, steps)
    for (const [i, { loss, gradNorm }] of here.logs.entries()) {
      const other = there.logs[i]!
      t.ok(Math.abs(other.loss - loss) <= tolerance * loss, `step ${i + 1}: loss ${other.loss}, on the CPU ${loss}`)
      t.ok(Math.abs(other.gradNorm - gradNorm) <= 10 * tolerance * gradNorm, `norm ${other.gradNorm}, on the CPU ${gradNorm}`)
    }
    t.ok(here.logs.at(-1)!.loss < here.logs[0]!.loss, 'it learns')
    if (dtype === 'float32') t.strictSame(there.tokens, here.tokens, 'it says the same')
    t.equal(there.bytes.at(-1), there.bytes[1], 'and nothing is left over from a step')
  })
}
