import { existsSync, readdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import { readReference } from '../support/reference-tensors.js'
import { batchOf, compareLogits } from './batch.js'
import { loadModel, withModel } from './models.js'
import { type Figure, Figures, type GoldenCase, valueDeviation } from './result.js'

export const VALUE_TOLERANCE = 2e-5

/** `forward/NAME.safetensors`: logits and loss of `models/NAME`. */
export function forwardCases(folder: string): GoldenCase[] {
  const directory = join(folder, 'forward')
  if (!existsSync(directory)) return []
  const files = readdirSync(directory).filter((file) => file.endsWith('.safetensors'))
  return files.sort().map((file) => {
    const model = basename(file, '.safetensors')
    return { name: `forward/${model}`, run: () => runForward(folder, model, join(directory, file)) }
  })
}

async function runForward(folder: string, name: string, path: string): Promise<Figure[]> {
  const reference = await readReference(path)
  return withModel(loadModel(folder, name), async (model) => {
    const figures = new Figures()
    const { actual, expected } = await compareLogits(model, reference, null)
    figures.add('logits', valueDeviation(actual, expected), VALUE_TOLERANCE)
    if (reference.has('loss')) {
      const { loss } = model.forward(batchOf(reference, { labels: true }), { adapter: null })
      figures.add('loss', valueDeviation([await loss!.item()], reference.get('loss')!.values), VALUE_TOLERANCE)
      loss!.dispose()
    }
    return figures.all()
  })
}
