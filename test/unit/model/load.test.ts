import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden, logitsOf, readGolden } from './goldens.js'

for (const name of ['llama', 'llama_tied', 'gpt2', 'qwen2', 'llama_bnb_nf4', 'llama_bnb_fp4']) {
  t.test(`${name}: logits and loss`, async (t) => {
    await using model = await Model.fromPretrained(golden(`models/${name}`), { device: 'cpu', dtype: 'float32' })
    const file = `forward/${name}.safetensors`
    const read = async (tensor: string) => (await readGolden(file, tensor)).ids
    const attentionMask = await read('attention_mask')
    const batch = Batch.fromPadded({ inputIds: await read('input_ids'), attentionMask, labels: await read('labels') })
    const { loss, logits, result } = run(model, batch)
    const { values, shape } = await readGolden(file, 'logits')
    const vocabulary = shape[2]!
    const expected: number[] = []
    for (const [i, mask] of attentionMask.flat().entries()) {
      if (mask === 1) expected.push(...values.subarray(i * vocabulary, (i + 1) * vocabulary))
    }
    t.ok(deviation(await logits, expected) < 2e-5, `logits differ by ${deviation(await logits, expected)}`)
    const expectedLoss = (await readGolden(file, 'loss')).values
    t.ok(deviation([await loss], expectedLoss) < 2e-5, `loss ${await loss} for ${expectedLoss[0]}`)
    result.dispose()
  })
}

function run(model: Model, batch: Batch) {
  const result = model.forward(batch, { outputRows: 'all' })
  const logits = result.logits()
  return { result, loss: result.loss!.item(), logits: logits.data() as Promise<Float32Array> }
}

t.test('a device that completes late gives the same bits', async (t) => {
  process.env.QUANTUNE_TEST_DEVICES = '1'
  const results: Float32Array[] = []
  for (const device of ['cpu', 'cpu-late'] as 'cpu'[]) {
    await using model = await Model.fromPretrained(golden('models/llama'), { device, dtype: 'float32', quantization: 'nf4' })
    await model.loadAdapter(golden('train/lora_llama_all_linear/adapter_final'))
    const beside = await logitsOf(model, [[1, 2, 3]])
    await model.mergeAdapter('default')
    const merged = await logitsOf(model, [[1, 2, 3]])
    await model.unmergeAdapter('default')
    results.push(Float32Array.from([...beside, ...merged, ...(await logitsOf(model, [[1, 2, 3]], null))]))
  }
  t.equal(deviation(results[1]!, results[0]!), 0)
})

t.test('given up on the way, nothing is left in memory', async (t) => {
  const source = golden('models/llama')
  await using model = await Model.fromPretrained(source, { device: 'cpu' })
  const inUse = async () => {
    await model.device.settled()
    return model.memoryUsage().current.total
  }
  const before = await inUse()
  const enough = new Error('enough')
  let calls = 0
  const onProgress = () => {
    if (++calls === 3) throw enough
  }
  await t.rejects(Model.fromPretrained(source, { device: 'cpu', onProgress }), enough)
  t.equal(await inUse(), before, 'when a listener throws')

  await t.rejects(Model.fromConfig(model.config, { device: 'cpu', signal: AbortSignal.abort(enough) }), enough)
  const controller = new AbortController()
  const creating = Model.fromConfig(model.config, { device: 'cpu', signal: controller.signal })
  controller.abort(enough)
  await t.rejects(creating, enough)
  t.equal(await inUse(), before, 'when a signal aborts')
})
