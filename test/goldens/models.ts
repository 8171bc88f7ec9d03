import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Model } from '../../lib/model/model.js'

export type LoadOptions = NonNullable<Parameters<typeof Model.fromPretrained>[1]>

/** A golden's model: in the folder's own `models`, or in one beside the folder. */
export function modelFolder(folder: string, name: string): string {
  const candidates = [join(folder, 'models', name), join(folder, '..', 'models', name)]
  const found = candidates.find((path) => existsSync(join(path, 'config.json')))
  if (!found) throw new Error(`there is no model "${name}": looked in ${candidates.join(' and ')}`)
  return found
}

/** Where the cases are computed: QUANTUNE_TEST_DEVICE, or the CPU. */
export const goldenDevice = () => process.env.QUANTUNE_TEST_DEVICE ?? 'cpu'

/** Loads a model as the references were made: in float32. */
export function loadModel(folder: string, name: string, options: LoadOptions = {}): Promise<Model> {
  const settings = { device: goldenDevice(), dtype: 'float32', ...options } as LoadOptions
  return Model.fromPretrained(modelFolder(folder, name), settings)
}

/** Runs `use` on a model and disposes of it. */
export async function withModel<T>(loading: Promise<Model>, use: (model: Model) => Promise<T>): Promise<T> {
  const model = await loading
  try {
    return await use(model)
  } finally {
    await model.dispose()
  }
}
