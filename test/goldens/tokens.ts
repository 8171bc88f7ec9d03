import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { readReference } from '../support/reference-tensors.js'
import { compareLogits } from './batch.js'
import { VALUE_TOLERANCE } from './forward.js'
import { loadModel, withModel } from './models.js'
import { type Figure, type GoldenCase, valueDeviation } from './result.js'

/** `tokens/CASE`: an adapter with rows for new tokens, saved by PEFT. */
export function tokenCases(folder: string): GoldenCase[] {
  const directory = join(folder, 'tokens')
  if (!existsSync(directory)) return []
  const cases = readdirSync(directory).filter((name) => existsSync(join(directory, name, 'case.json')))
  return cases.sort().map((name) => ({ name: `tokens/${name}`, run: () => runTokens(folder, join(directory, name)) }))
}

async function runTokens(folder: string, directory: string): Promise<Figure[]> {
  const { model: name } = JSON.parse(readFileSync(join(directory, 'case.json'), 'utf8')) as { model: string }
  const reference = await readReference(join(directory, 'case.safetensors'))
  return withModel(loadModel(folder, name), async (model) => {
    await model.loadAdapter(join(directory, 'adapter'), { name: 'default' })
    const { actual, expected } = await compareLogits(model, reference, 'default')
    return [{ what: 'logits', deviation: valueDeviation(actual, expected), tolerance: VALUE_TOLERANCE }]
  })
}
