import { readFile } from 'node:fs/promises'
import t from 'tap'
import { Tokenizer } from '../../../lib/data/tokenizer.js'
import { Model } from '../../../lib/model/model.js'
import { Trainer } from '../../../lib/training/trainer.js'
import { collator, type Example } from '../training/bigram.js'
import { golden } from './goldens.js'

const busy = { code: 'ERR_BUSY' }

async function open(): Promise<Model> {
  const tokenizer = await Tokenizer.fromFolder(golden('chat/chatml/tokenizer'))
  const config = JSON.parse(await readFile(golden('models/llama_tied/config.json'), 'utf8'))
  return Model.fromConfig({ ...config, vocab_size: tokenizer.vocabSize }, { device: 'cpu', dtype: 'float32', tokenizer })
}

t.test('what a training must not see change', async (t) => {
  await using model = await open()
  model.addAdapter({ r: 2 }, 'trained')
  model.addAdapter({ r: 2 }, 'other')
  const make = (adapter: string, onStepEnd?: () => Promise<void>) =>
    new Trainer<Example>({
      model,
      adapter,
      collator,
      trainDataset: [{ inputIds: [1, 2, 3, 4] }, { inputIds: [5, 6, 7] }],
      callbacks: onStepEnd ? { onStepEnd } : {},
      args: { outputDir: t.testdir(), maxSteps: 2, saveStrategy: 'no', disableProgress: true },
    })
  const merging: Promise<string>[] = []
  let steps = 0
  const output = await make('trained', async () => {
    if (steps++ > 0) return
    t.throws(() => model.addTokens(['<one>']), { ...busy, message: /train adapter "trained"/ })
    t.equal(model.tokenizer.convertTokensToIds('<one>'), null, 'nothing was added')
    t.throws(() => model.addAdapter({ r: 2 }, 'trained'), { ...busy, message: /"trained" is being trained/ })
    t.throws(() => model.addAdapter({ r: 2 }, 'other'), { code: 'ERR_INVALID_ARGUMENT', message: /there is an adapter/ })
    await t.rejects(model.loadAdapter(golden('tokens/llama_tied/adapter'), { name: 'trained' }), busy)
    await t.rejects(make('trained').train(), busy, 'a second training of the adapter')
    model.addAdapter({ r: 2 }, 'later')
    t.equal((await make('other').train()).globalStep, 2, 'of another adapter')
    t.equal((await model.generate({ inputIds: [1, 2] }, { maxNewTokens: 2, eosTokenId: [] })).tokenIds.length, 2)
    merging.push(model.mergeAdapter('trained').then(() => `merged after step ${steps}`))
  }).train()
  t.equal(output.globalStep, 2)
  t.equal(await merging[0], 'merged after step 2', 'merging waits')
  await model.unmergeAdapter('trained')
  t.equal(model.addTokens(['<one>']).length, 1, 'afterwards it works')
})

t.test('addTokens beside other calls', async (t) => {
  await using model = await open()
  for (const call of [
    model.generate({ inputIds: [1, 2] }, { maxNewTokens: 4 }),
    model.score({ inputIds: [1, 2] }, ['a']),
    model.savePretrained(t.testdir()),
  ]) {
    t.throws(() => model.addTokens(['<one>']), busy)
    await call
  }
  t.equal(model.addTokens(['<one>']).length, 1)
})
