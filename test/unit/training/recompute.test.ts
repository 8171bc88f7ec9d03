import t from 'tap'
import { Model } from '../../../lib/model/model.js'
import { recomputesActivations } from '../../../lib/training/recompute.js'
import { golden } from '../model/goldens.js'

t.test("'auto' recomputes activations where they would not fit", async (t) => {
  await using model = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  const auto = (tokens: number, free: number) => recomputesActivations('auto', model, tokens, () => free)
  t.equal(auto(1000, 2 ** 33), false)
  t.equal(auto(1000, 2 ** 20), true)
  t.equal(auto(1, 2 ** 20), false)
  t.equal(recomputesActivations(true, model, 1), true)
  t.equal(recomputesActivations(false, model, 10 ** 9), false)
  t.equal(recomputesActivations('auto', model, 100), false, 'the memory of this machine')
})
