/**
 * LoRA training steps of a Llama-shaped model with random weights; the same work as bench/peers/torch_peft_train.py.
 *
 * usage: node dist/bench/train/lora.js [--seq 512] [--batch 2] [--steps 5] [--rank 16] [--quantization nf4] [--dtype auto] [--checkpointing]
 */
import { parseArgs } from 'node:util'
import { AdamW, Batch, env, Model } from '../../lib/index.js'
import { median, peakMegabytes, report } from '../trial.js'

/** The shape of SmolLM2-135M. */
export const SHAPE = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  vocab_size: 49152,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  hidden_act: 'silu',
  tie_word_embeddings: true,
}
const LABELLED = 32

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seq: { type: 'string', default: '512' },
      batch: { type: 'string', default: '2' },
      steps: { type: 'string', default: '5' },
      rank: { type: 'string', default: '16' },
      quantization: { type: 'string', default: 'nf4' },
      dtype: { type: 'string', default: 'auto' },
      checkpointing: { type: 'boolean', default: false },
    },
  })
  const [seq, batchSize, steps, rank] = [values.seq, values.batch, values.steps, values.rank].map(Number) as [
    number,
    number,
    number,
    number,
  ]
  const dtype = values.dtype as 'auto' | 'float32' | 'bfloat16'
  const model = await Model.fromConfig(SHAPE, { quantization: values.quantization as 'nf4' | 'none', dtype })
  model.addAdapter({ type: 'lora', r: rank, loraAlpha: 16, targetModules: 'all-linear' })
  const sequences = Array.from({ length: batchSize }, (_, s) => {
    const inputIds = Array.from({ length: seq }, (_, i) => (s * 7919 + i * 104729 + 17) % SHAPE.vocab_size)
    return { inputIds, labels: inputIds.map((id, i) => (i < seq - LABELLED ? -100 : id)) }
  })
  const batch = Batch.pack(sequences, { sharePrefixes: false })
  const optimizer = new AdamW(model.trainableParameters(), { learningRate: 1e-4 })
  const seconds: number[] = []
  const losses: number[] = []
  for (let step = 0; step <= steps; step++) {
    const begin = performance.now()
    const { loss } = model.forward(batch, { gradientCheckpointing: values.checkpointing })
    loss!.backward()
    await optimizer.step()
    optimizer.zeroGrad()
    losses.push(await loss!.item())
    loss!.dispose()
    seconds.push((performance.now() - begin) / 1000)
  }
  const stepSeconds = median(seconds.slice(1))
  report({
    name: 'train-lora',
    figures: { tokensPerSecond: (batchSize * seq) / stepSeconds, stepSeconds, peakMegabytes: peakMegabytes() },
    setting: {
      seq,
      batch: batchSize,
      rank,
      quantization: values.quantization,
      dtype: values.dtype,
      variant: model.device.variant,
      threads: env.numThreads,
      losses,
    },
  })
  await model.dispose()
}

await main()
