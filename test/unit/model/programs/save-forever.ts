/** Saves two models in turn into one folder, whole or in shards, until it is killed. */
import { Model } from '../../../../lib/model/model.js'

const [folder, ...sources] = process.argv.slice(2) as [string, string, string]
const options = { device: 'cpu', dtype: 'float32' } as const
const models = await Promise.all(sources.map((source) => Model.fromPretrained(source, options)))
for (let turn = 0; ; turn++) {
  await models[turn % models.length]!.savePretrained(folder, { maxShardSize: turn % 3 === 0 ? '5GB' : '100KB' })
  if (turn === 0) console.log('saving')
}
