/**
 * Prefill, decoding and beam search of a Llama-shaped model with random weights; the same work as bench/peers/torch_generate.py.
 *
 * usage: node dist/bench/generate/generate.js [--shape smollm2-135m] [--prompt 512] [--new 32] [--beams 1] [--quantization nf4]
 *   [--dtype auto] [--device auto] [--repeat 3]
 */
import { parseArgs } from 'node:util'
import { env, Generator, Model, type ModelOptions } from '../../lib/index.js'
import { randomIds, shapeOf } from '../shapes.js'
import { peakMegabytes, report } from '../trial.js'

const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    prompt: { type: 'string', default: '512' },
    new: { type: 'string', default: '32' },
    beams: { type: 'string', default: '1' },
    quantization: { type: 'string', default: 'nf4' },
    dtype: { type: 'string', default: 'auto' },
    device: { type: 'string', default: 'auto' },
    repeat: { type: 'string', default: '3' },
  },
})
const [prompt, tokens, beams, repeat] = [values.prompt, values.new, values.beams, values.repeat].map(Number) as [
  number,
  number,
  number,
  number,
]
const shape = shapeOf(values.shape)
const model = await Model.fromConfig(shape, {
  quantization: values.quantization as 'nf4' | 'none',
  dtype: values.dtype as NonNullable<ModelOptions['dtype']>,
  device: values.device as NonNullable<ModelOptions['device']>,
})
const generator = new Generator(model)
const inputIds = randomIds(prompt, shape.vocab_size)

/** The least seconds of several calls for that many new tokens. */
async function seconds(maxNewTokens: number): Promise<number> {
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < repeat; i++) {
    const begin = performance.now()
    const { tokenIds } = await generator.generate({ inputIds }, { maxNewTokens, numBeams: beams, eosTokenId: [] })
    if (tokenIds.length !== maxNewTokens) throw new Error(`expected ${maxNewTokens} tokens, received ${tokenIds.length}`)
    best = Math.min(best, (performance.now() - begin) / 1000)
  }
  return best
}

await seconds(2)
const first = await seconds(1)
const all = await seconds(tokens + 1)
report({
  name: 'generate',
  figures: {
    prefillTokensPerSecond: prompt / first,
    decodeTokensPerSecond: tokens / (all - first),
    millisecondsPerStep: ((all - first) / tokens) * 1000,
    peakMegabytes: peakMegabytes(),
  },
  setting: {
    shape: values.shape,
    prompt,
    new: tokens,
    beams,
    quantization: values.quantization,
    dtype: values.dtype,
    device: model.device.name,
    variant: model.device.variant,
    threads: env.numThreads,
  },
})
await model.dispose()
