// Ten training steps with the installed package.
import { AdamW, Batch, Model } from 'quantune'

const model = await Model.fromPretrained('./model', { device: 'cpu', quantization: 'nf4' })
model.addAdapter({ type: 'lora', r: 4, targetModules: 'all-linear' })
const batch = Batch.pack([
  { inputIds: [1, 5, 9, 13, 17], labels: [-100, -100, 9, 13, 17] },
  { inputIds: [1, 5, 8, 12], labels: [-100, -100, 8, 12] },
])
const optimizer = new AdamW(model.trainableParameters(), { learningRate: 1e-2 })
const losses = []
for (let step = 0; step < 10; step++) {
  const { loss } = model.forward(batch)
  loss.backward()
  await optimizer.step()
  optimizer.zeroGrad()
  losses.push(await loss.item())
  loss.dispose()
}
console.log(losses.map((loss) => loss.toFixed(3)).join(' '))
if (!(losses[9] < losses[0])) throw new Error('the loss did not fall')
await model.dispose()
