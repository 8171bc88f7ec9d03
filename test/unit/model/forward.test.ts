import t from 'tap'
import { noGrad } from '../../../lib/autograd/index.js'
import { Batch } from '../../../lib/data/batch.js'
import { Model } from '../../../lib/model/model.js'
import { scope } from '../../../lib/tensor/index.js'
import { deviation, golden } from './goldens.js'

const options = { device: 'cpu', dtype: 'float32' } as const
const model = await Model.fromPretrained(golden('models/llama'), options)
t.teardown(() => model.dispose())
const V = 256
const inputIds = [
  [1, 2, 3, 4, 5],
  [1, 2, 9, 8, 7],
]
const labels = [
  [-100, -100, 3, 4, 5],
  [-100, -100, 9, -100, 7],
]
const batch = Batch.pack(
  inputIds.map((ids, i) => ({ inputIds: ids, labels: labels[i]! })),
  { sharePrefixes: true },
)

t.test('outputRows', async (t) => {
  const all = model.forward(batch, { outputRows: 'all' })
  const full = (await all.logits().data()) as Float32Array
  t.equal(full.length, batch.inputIds.length * V)
  const labelled = model.forward(batch)
  const rows = [...new Set(batch.targetRows)]
  const few = (await labelled.logits().data()) as Float32Array
  const expected = rows.flatMap((row) => [...full.subarray(row * V, (row + 1) * V)])
  t.ok(deviation(few, expected) < 1e-5, 'labelled rows only')
  t.ok(deviation([await labelled.loss!.item()], [await all.loss!.item()]) < 1e-6)
  t.equal(labelled.loss!.count, 5)
  const some = model.forward(batch, { outputRows: new Int32Array([6, 0]) })
  const last = (await some.logits().data()) as Float32Array
  t.ok(deviation(last, [...full.subarray(6 * V, 7 * V), ...full.subarray(0, V)]) < 1e-5, 'in the order asked for')
  const other = (await some.logits(batch.targetRows.slice(0, 1)).data()) as Float32Array
  t.ok(deviation(other, full.subarray(batch.targetRows[0]! * V, (batch.targetRows[0]! + 1) * V)) < 1e-5)
  t.throws(() => labelled.logits(new Int32Array([0])), { code: 'ERR_INVALID_ARGUMENT', message: /row 0 was not computed/ })
  t.throws(() => model.forward(batch, { outputRows: new Int32Array([99]) }), { code: 'ERR_INVALID_ARGUMENT', message: /99/ })
  for (const result of [all, labelled, some]) result.dispose()
  t.throws(() => all.logits(), { code: 'ERR_DISPOSED' })
})

t.test('a mean over a prefix tree is the mean over its samples', async (t) => {
  const apart = Batch.fromPadded({ inputIds, labels })
  const [tree, padded] = [model.forward(batch), model.forward(apart)]
  t.ok(deviation([await tree.loss!.item()], [await padded.loss!.item()]) < 1e-5)
  tree.dispose()
  padded.dispose()
})

t.test('batches that do not fit', async (t) => {
  const refused = (message: RegExp) => ({ code: 'ERR_INVALID_ARGUMENT', message })
  const none = new Int32Array(0)
  const empty = { inputIds: none, positions: none, end: none, targetRows: none, targetIds: none, sampleRows: [] }
  t.throws(() => model.forward(empty), refused(/empty/))
  t.throws(() => model.forward({ ...batch, positions: none }), refused(/positions/))
  t.throws(() => model.forward({ ...batch, targetIds: none }), refused(/targetIds/))
  const far = { ...batch, positions: batch.positions.map((p) => p + 508) }
  t.throws(() => model.forward(far), { code: 'ERR_CONTEXT_LENGTH', details: { length: 513, limit: 512 } })
  const unlabelled = model.forward(Batch.fromPadded({ inputIds }))
  t.equal(unlabelled.loss, undefined)
  unlabelled.dispose()
  const wild = model.forward(Batch.fromPadded({ inputIds: [[1, 256]] }))
  await t.rejects(wild.logits().data(), { code: 'ERR_INVALID_ARGUMENT', message: /256/ })
  wild.dispose()
  const after = model.forward(batch)
  t.ok(Number.isFinite(await after.loss!.item()), 'the model is usable afterwards')
  after.dispose()
})

t.test('gradients, and nothing left over', async (t) => {
  const trained = await Model.fromPretrained(golden('models/llama'), options)
  t.teardown(() => trained.dispose())
  const bare = trained.forward(batch)
  t.throws(() => bare.loss!.backward(), { code: 'ERR_INVALID_ARGUMENT', message: /trainable/ })
  bare.dispose()
  trained.addAdapter({ r: 2 })
  const evaluated = noGrad(() => trained.forward(batch))
  t.throws(() => evaluated.loss!.backward(), { code: 'ERR_INVALID_ARGUMENT' })
  evaluated.dispose()
  const step = (inScope: boolean) => {
    const run = () => {
      const { loss } = trained.forward(batch)
      loss!.backward()
      loss!.dispose()
    }
    return inScope ? scope(run) : run()
  }
  step(true)
  await trained.device.settled()
  const b = trained.trainableParameters().find(({ name }) => name.endsWith('lora_B.weight'))!
  t.ok((await b.grad())!.some((g) => g !== 0))
  const { current } = trained.memoryUsage()
  for (let i = 0; i < 20; i++) step(i % 2 === 0)
  const unused = trained.forward(batch)
  unused.dispose()
  await trained.device.settled()
  t.equal(trained.memoryUsage().current.total, current.total)
})

t.test('everything trainable', async (t) => {
  await using full = await Model.fromPretrained(golden('models/llama'), { ...options, trainable: true })
  t.equal(full.trainableParameters().length, full.parameters().size)
  await using random = await Model.fromConfig(full.config, { ...options, trainable: true, seed: 4 })
  await using same = await Model.fromConfig(full.config, { ...options, seed: 4 })
  await using other = await Model.fromConfig(full.config, { ...options, seed: 5 })
  const weight = (m: Model) => m.parameters().get('lm_head.weight')!.data()
  t.equal(deviation(await weight(random), await weight(same)), 0)
  t.ok(deviation(await weight(random), await weight(other)) > 0)
  t.same(same.trainableParameters(), [])
  const fourBit = { ...options, trainable: true, quantization: 'nf4' } as const
  await t.rejects(Model.fromPretrained(golden('models/llama'), fourBit), { code: 'ERR_INVALID_ARGUMENT', message: /nf4/ })
  await t.rejects(Model.fromConfig(full.config, fourBit), { code: 'ERR_INVALID_ARGUMENT' })
})

t.test('bfloat16 activations', async (t) => {
  await using half = await Model.fromPretrained(golden('models/llama'), { device: 'cpu', dtype: 'bfloat16' })
  half.addAdapter({ r: 4, initLoraWeights: false })
  await using full = await Model.fromPretrained(golden('models/llama'), options)
  full.addAdapter({ r: 4, initLoraWeights: false })
  const values: { loss: number; gradients: (Float32Array | null)[] }[] = []
  for (const each of [half, full]) {
    const { loss } = each.forward(batch)
    loss!.backward()
    values.push({ loss: await loss!.item(), gradients: await Promise.all(each.trainableParameters().map((p) => p.grad())) })
    loss!.dispose()
  }
  t.ok(values[0]!.loss !== values[1]!.loss && Math.abs(values[0]!.loss - values[1]!.loss) < 0.02)
  for (const [i, expected] of values[1]!.gradients.entries()) {
    const largest = Math.max(...expected!.map(Math.abs))
    const gap = Math.max(...expected!.map((g, k) => Math.abs(g - values[0]!.gradients[i]![k]!)))
    t.ok(gap < 0.1 * largest, `gradient ${i}: ${gap} of ${largest}`)
  }
})

t.test('memory estimate', async (t) => {
  const estimate = await Model.estimateMemory(golden('models/llama'), { adapter: { r: 4 }, batchTokens: 100 })
  const r4 = 3 * (4 * (64 + 64) + 4 * (64 + 32)) * 4
  t.equal(estimate.adapters, r4)
  t.equal(estimate.gradients, r4)
  t.equal(estimate.optimizer, 2 * r4)
  const stored = [...model.parameters().values()].reduce((sum, { value }) => sum + 4 * value.size, 0)
  t.equal(estimate.weights, stored)
  t.equal(estimate.total, stored + 4 * r4 + estimate.activations)
  await using trained = await Model.fromPretrained(golden('models/llama'), options)
  trained.addAdapter({ targetModules: 'all-linear' })
  const ids = Array.from({ length: 400 }, (_, i) => i % 250)
  const long = Batch.fromPadded({ inputIds: [ids], labels: [ids] })
  for (const gradientCheckpointing of [false, true]) {
    trained.device.resetPeak()
    scope(() => {
      trained.forward(long, { gradientCheckpointing }).loss!.backward()
    })
    await trained.device.settled()
    const peak = trained.memoryUsage().peak.activations
    const { activations } = await Model.estimateMemory(golden('models/llama'), { batchTokens: 400, gradientCheckpointing })
    t.ok(activations > 0.7 * peak && activations < 1.4 * peak, `activations: ${activations} estimated, ${peak} used`)
  }
  const full = await Model.estimateMemory(golden('models/llama'), { trainable: true })
  t.equal(full.optimizer, 2 * stored)
  t.equal(full.activations, 0)
  const bnb = await Model.estimateMemory(golden('models/llama_bnb_nf4'))
  const ours = await Model.estimateMemory(golden('models/llama'), { quantization: 'nf4' })
  t.equal(bnb.weights, ours.weights)
})
