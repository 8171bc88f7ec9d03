import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { Batch } from '../../../lib/data/batch.js'
import { Generator } from '../../../lib/generation/index.js'
import { Model } from '../../../lib/model/model.js'
import { AdamW } from '../../../lib/training/optimizer.js'
import { Trainer } from '../../../lib/training/trainer.js'
import { golden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))
const batch = Batch.pack([{ inputIds: [1, 2, 3], labels: [1, 2, 3] }])
const example = { inputIds: [1, 2, 3] }

/** What a person may still hold when the model goes. */
async function open() {
  const model = await Model.fromPretrained(golden('models/stories260k'), { device: 'cpu' })
  model.addAdapter({ r: 2, targetModules: ['q_proj'] })
  const args = { outputDir: folder, maxSteps: 1, disableProgress: true }
  const collator = { collate: () => batch }
  const trainer = new Trainer({ model, trainDataset: [example], evalDataset: [example], collator, args })
  const optimizer = new AdamW(model.trainableParameters())
  return { model, view: model.withAdapter('default'), generator: new Generator(model), trainer, optimizer }
}

const methods: Record<string, (model: Model) => unknown> = {
  tokenizer: (model) => model.tokenizer,
  parameters: (model) => model.parameters(),
  trainableParameters: (model) => model.trainableParameters(),
  resolveAdapter: (model) => model.resolveAdapter('default'),
  withAdapter: (model) => model.withAdapter(null),
  forward: (model) => model.forward(batch),
  addAdapter: (model) => model.addAdapter({}, 'other'),
  addTokens: (model) => model.addTokens(['<new>']),
  setAdapter: (model) => model.setAdapter(null),
  loadAdapter: (model) => model.loadAdapter(golden('train/lora_llama_all_linear/adapter'), { name: 'other' }),
  saveAdapter: (model) => model.saveAdapter(join(folder, 'adapter')),
  mergeAdapter: (model) => model.mergeAdapter('default'),
  unmergeAdapter: (model) => model.unmergeAdapter('default'),
  savePretrained: (model) => model.savePretrained(join(folder, 'model')),
  generate: (model) => model.generate('Once'),
  stream: (model) => model.stream('Once').next(),
  score: (model) => model.score('Once', [' upon']),
  beginCall: (model) => model.beginCall('generate'),
}

/** Thrown or rejected with: the code of its error. */
async function codeOf(use: () => unknown): Promise<unknown> {
  try {
    await use()
    return 'no error'
  } catch (error) {
    return (error as { code?: unknown }).code ?? error
  }
}

t.test('a disposed model refuses every use', async (t) => {
  const { model, view, generator, trainer, optimizer } = await open()
  const weight = model.parameters().get('model.norm.weight')!
  model.forward(batch).loss!.backward()
  const { loss } = model.forward(batch)
  await model.dispose()
  for (const [name, use] of Object.entries(methods)) {
    t.equal(await codeOf(() => use(model)), 'ERR_DISPOSED', name)
    t.equal(await codeOf(() => use(view)), 'ERR_DISPOSED', `${name} of a view`)
  }
  t.equal(await codeOf(() => generator.generate('Once')), 'ERR_DISPOSED')
  t.equal(await codeOf(() => generator.score('Once', [' upon'])), 'ERR_DISPOSED')
  t.equal(await codeOf(() => generator.stream('Once')), 'ERR_DISPOSED')
  t.equal(await codeOf(() => trainer.train()), 'ERR_DISPOSED')
  t.equal(await codeOf(() => trainer.evaluate()), 'ERR_DISPOSED')
  t.equal(await codeOf(() => weight.data()), 'ERR_DISPOSED')
  t.equal(await codeOf(() => loss!.backward()), 'ERR_DISPOSED')
  loss!.dispose()
  t.equal(await codeOf(() => optimizer.step()), 'ERR_DISPOSED')
  await model.dispose()
  await view.dispose()
  t.pass('disposing again does nothing')
  t.equal(model.memoryUsage().current.weights, 0)
})

t.test('dispose() of a view leaves the model', async (t) => {
  const { model, view } = await open()
  await view.dispose()
  t.equal((await model.generate('Once', { maxNewTokens: 2 })).tokenIds.length, 2)
  await model.dispose()
})

t.test('a disposed trainer is refused', async (t) => {
  const { model, trainer } = await open()
  await trainer.dispose()
  t.equal(await codeOf(() => trainer.train()), 'ERR_DISPOSED')
  t.equal(await codeOf(() => trainer.evaluate()), 'ERR_DISPOSED')
  await model.dispose()
})

t.test('nothing holds a model that was disposed of', async (t) => {
  setFlagsFromString('--expose-gc')
  const collectGarbage = runInNewContext('gc') as () => void
  const use = async () => {
    const model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
    await model.generate({ inputIds: [1, 2, 3] }, { maxNewTokens: 3 })
    await model.dispose()
    return new WeakRef(model.network)
  }
  const network = await use()
  for (let i = 0; i < 10 && network.deref(); i++) {
    await new Promise((resolve) => setTimeout(resolve, 10))
    collectGarbage()
  }
  t.equal(network.deref(), undefined)
})
