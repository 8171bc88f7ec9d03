import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { QuantuneError } from '../../../lib/errors.js'
import { Model } from '../../../lib/model/model.js'
import { readAdapterConfig } from '../../../lib/peft/config-file.js'
import { golden } from './goldens.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))

const value = fc.oneof(fc.jsonValue({ maxDepth: 1 }), fc.integer(), fc.constantFrom(1e9, 2 ** 53, 1e300, '64', null))

/** Any field with any value is accepted or refused in words, at once. */
async function check(original: Record<string, unknown>, read: (json: object) => Promise<unknown>): Promise<void> {
  const field = fc.constantFrom(...Object.keys(original))
  await fc.assert(
    fc.asyncProperty(field, value, async (name, instead) => {
      try {
        await read({ ...original, [name]: instead })
      } catch (error) {
        if (!(error instanceof QuantuneError)) throw error
      }
    }),
    { numRuns: 100 },
  )
}

for (const name of ['llama', 'gpt2', 'llama_bnb_nf4']) {
  t.test(`property: ${name}: config.json may say anything`, async () => {
    const target = join(folder, name)
    await cp(golden(`models/${name}`), target, { recursive: true })
    const path = join(target, 'config.json')
    await check(JSON.parse(await readFile(path, 'utf8')), async (json) => {
      await writeFile(path, JSON.stringify(json))
      return Model.estimateMemory(target)
    })
  })
}

t.test('property: so may adapter_config.json', async () => {
  const source = golden('tokens/llama_tied/adapter/adapter_config.json')
  const path = join(folder, 'adapter_config.json')
  await check(JSON.parse(await readFile(source, 'utf8')), async (json) => {
    await writeFile(path, JSON.stringify(json))
    return readAdapterConfig(path)
  })
})
