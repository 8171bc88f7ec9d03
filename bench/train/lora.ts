/**
 * LoRA training steps of a Llama-shaped model with random weights; the same work as bench/peers/torch_peft_train.py. While they
 * run, the event loop's delay is watched.
 *
 * usage: node dist/bench/train/lora.js [--shape smollm2-135m] [--seq 512] [--batch 2] [--steps 5] [--rank 16] [--quantization nf4]
 *   [--dtype auto] [--device auto] [--checkpointing]
 */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { AdamW, Batch, env, Model, type ModelOptions } from '../../lib/index.js'
import { randomIds, shapeOf } from '../shapes.js'
import { median, peakMegabytes, report } from '../trial.js'

/** Labels at the end of each sequence, as in the peer's program. */
const LABELLED = 32

const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    seq: { type: 'string', default: '512' },
    batch: { type: 'string', default: '2' },
    steps: { type: 'string', default: '5' },
    rank: { type: 'string', default: '16' },
    quantization: { type: 'string', default: 'nf4' },
    dtype: { type: 'string', default: 'auto' },
    device: { type: 'string', default: 'auto' },
    checkpointing: { type: 'boolean', default: false },
  },
})
const [seq, sequences, steps, rank] = [values.seq, values.batch, values.steps, values.rank].map(Number) as [
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
model.addAdapter({ type: 'lora', r: rank, loraAlpha: 16, targetModules: 'all-linear' })
const batch = Batch.pack(
  Array.from({ length: sequences }, (_, s) => {
    const inputIds = randomIds(seq, shape.vocab_size, s)
    return { inputIds, labels: inputIds.map((id, i) => (i < seq - LABELLED ? -100 : id)) }
  }),
  { sharePrefixes: false },
)
const optimizer = new AdamW(model.trainableParameters(), { learningRate: 1e-4 })
const delay = monitorEventLoopDelay({ resolution: 1 })
const seconds: number[] = []
const losses: number[] = []
for (let step = 0; step <= steps; step++) {
  if (step === 1) {
    delay.enable()
    model.device.resetPeak()
  }
  const begin = performance.now()
  const { loss } = model.forward(batch, { gradientCheckpointing: values.checkpointing })
  loss!.backward()
  await optimizer.step()
  optimizer.zeroGrad()
  losses.push(await loss!.item())
  loss!.dispose()
  seconds.push((performance.now() - begin) / 1000)
}
delay.disable()
const stepSeconds = median(seconds.slice(1))
report({
  name: 'train-lora',
  figures: {
    tokensPerSecond: (sequences * seq) / stepSeconds,
    stepSeconds,
    peakMegabytes: peakMegabytes(),
    devicePeakGigabytes: model.device.memoryUsage().peak.total / 1e9,
    eventLoopDelayP99Milliseconds: delay.percentile(99) / 1e6,
  },
  setting: {
    shape: values.shape,
    seq,
    batch: sequences,
    rank,
    quantization: values.quantization,
    dtype: values.dtype,
    checkpointing: values.checkpointing,
    device: model.device.name,
    variant: model.device.variant,
    threads: env.numThreads,
    losses,
  },
})
await model.dispose()
