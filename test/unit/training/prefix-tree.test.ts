import fc from 'fast-check'
import t from 'tap'
import { backward, type Parameter, Tape } from '../../../lib/autograd/index.js'
import { Batch, type Sequence } from '../../../lib/data/batch.js'
import type { BatchData } from '../../../lib/data/batch-data.js'
import { LoraAdapter } from '../../../lib/peft/lora.js'
import { Device } from '../../../lib/tensor/device.js'
import { countTargets, microBatches } from '../../../lib/training/micro-batches.js'
import { createNetwork, meanLoss } from '../../support/network.js'

const VOCABULARY = 13
const shape = { hidden_size: 16, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 24, num_hidden_layers: 3 }
const config = { model_type: 'llama', vocab_size: VOCABULARY, max_position_embeddings: 64, initializer_range: 0.3, ...shape }
const device = await Device.open('cpu')
const network = createNetwork(device, config, { trainable: true })
const adapter = LoraAdapter.create('a', { targetModules: 'all-linear', initLoraWeights: false, r: 4, seed: 2 }, network)
const parameters = [...network.parameters.values(), ...adapter.parameters().values()]

/** Loss and gradients of an optimizer step of these micro-batches: the mean over the targets of them all. */
async function stepOf(batches: readonly BatchData[], gradientCheckpointing: boolean) {
  const targets = countTargets(batches)
  let loss = 0
  for (const batch of batches) {
    if (batch.targetIds.length === 0) continue
    const share = batch.targetIds.length / targets
    const mean = meanLoss(network, batch, new Tape(), { adapter, gradientCheckpointing })
    backward(mean, share)
    loss += share * (await mean.item())
    mean.dispose()
  }
  const gradients = await Promise.all(parameters.map((parameter: Parameter) => parameter.grad()))
  for (const parameter of parameters) parameter.zeroGrad()
  return { loss, gradients }
}

type Step = Awaited<ReturnType<typeof stepOf>>

const largestOf = (values: Iterable<number>) => Array.from(values).reduce((most, x) => Math.max(most, Math.abs(x)), 0)

/**
 * The largest difference of two steps as a share of what float32 rounding may make: 1e-5 of the largest gradient of the parameter, and
 * 1e-6 of the largest of all (some gradients are zero but for the rounding of what cancels).
 */
function difference(a: Step, b: Step): number {
  let worst = Math.abs(a.loss - b.loss) / (1e-6 * Math.max(1, Math.abs(a.loss)))
  const overall = largestOf(a.gradients.map((gradient) => largestOf(gradient!)))
  for (const [i, gradient] of a.gradients.entries()) {
    const gap = largestOf(gradient!.map((g, k) => g - b.gradients[i]![k]!))
    worst = Math.max(worst, gap / (1e-5 * largestOf(gradient!) + 1e-6 * overall))
  }
  return worst
}

// Few different tokens, so that samples part anywhere; labels differ from tokens, so that one row predicts several things.
const token = fc.record({ id: fc.integer({ min: 0, max: 2 }), label: fc.integer({ min: -VOCABULARY, max: VOCABULARY - 1 }) })
const sequence = fc.array(token, { minLength: 2, maxLength: 12 }).map(
  (tokens): Sequence => ({
    inputIds: tokens.map(({ id }) => id),
    labels: tokens.map(({ label }) => (label < 0 ? -100 : label)),
  }),
)
const cutAt = (end: number) => (values: ArrayLike<number>) => Array.from(values).slice(0, end)
/** Independent samples, and such that equal another, are the beginning of it, or go on behind its beginning. */
const related = fc
  .tuple(fc.array(sequence, { minLength: 1, maxLength: 3 }), fc.array(fc.tuple(fc.nat(), fc.nat(), sequence), { maxLength: 4 }))
  .map(([first, changes]) => {
    const samples = [...first]
    for (const [which, where, rest] of changes) {
      const { inputIds, labels } = samples[which % samples.length]!
      const cut = cutAt(1 + (where % inputIds.length))
      const goesOn = where % 3 === 0
      samples.push({
        inputIds: [...cut(inputIds), ...(goesOn ? Array.from(rest.inputIds) : [])],
        labels: [...cut(labels!), ...(goesOn ? Array.from(rest.labels!) : [])],
      })
    }
    return samples
  })
const isLabelled = ({ labels }: Sequence) =>
  Array.from(labels!)
    .slice(1)
    .some((label) => label >= 0)
const options = fc.record({ trimUnused: fc.boolean(), notAttended: fc.subarray([0, 1, 2], { maxLength: 1 }) })

t.test('a tree, and the parts it is split into, have the loss and the gradients of the separate samples', async (t) => {
  let worst = 0
  let shapes = 0
  let split = 0
  await fc.assert(
    fc.asyncProperty(
      related,
      options,
      fc.integer({ min: 4, max: 40 }),
      fc.boolean(),
      async (samples, pack, maxTokens, again) => {
        fc.pre(samples.some(isLabelled))
        const collator = { collate: (some: readonly Sequence[]) => Batch.pack(some, pack) }
        const apart = samples.map((sample) => Batch.pack([sample], { notAttended: pack.notAttended }))
        const parts = await microBatches(collator, samples, { batchSize: 1, maxTokens })
        const expected = await stepOf(apart, false)
        const tree = difference(expected, await stepOf([collator.collate(samples)], again))
        const cut = parts.length > 1 ? difference(expected, await stepOf(parts, again)) : 0
        worst = Math.max(worst, tree, cut)
        shapes++
        if (parts.length > 1) split++
        return tree < 1 && cut < 1
      },
    ),
    { numRuns: 300 },
  )
  t.ok(split > 50, `${split} of ${shapes} trees were split`)
  t.comment(`largest difference: ${worst.toFixed(2)} of what is allowed`)
})
