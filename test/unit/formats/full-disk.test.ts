import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Model } from '../../../lib/model/model.js'
import { compile } from '../../support/compile.js'
import { golden } from '../model/goldens.js'

const programs = 'test/unit/formats/programs'
const program = join(compile('full-disk', ['lib', programs]), programs, 'full-disk.js')
const source = golden('models/llama')
const hasLimits = spawnSync('prlimit', ['--version']).status === 0

async function saveOnFullDisk(folder: string, how: 'adapter' | 'model') {
  const child = spawn(process.execPath, [program, source, folder, how])
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) child[name].on('data', (text) => (output[name] += text))
  const [code, signal] = await once(child, 'close')
  if (code !== 0) throw new Error(`${code ?? signal}: ${output.stderr}`)
  return JSON.parse(output.stdout) as { outcome: string; files: string[] }
}

t.test('a full disk is ERR_IO and what was saved before stays', { skip: !hasLimits && 'needs prlimit' }, async (t) => {
  const folder = t.testdir({ adapter: {} })
  await using model = await Model.fromPretrained(source, { device: 'cpu' })
  model.addAdapter({ r: 2, targetModules: ['q_proj'] })
  await model.saveAdapter(join(folder, 'adapter'))
  const weights = join(folder, 'adapter', 'adapter_model.safetensors')
  const before = readFileSync(weights)
  const adapter = await saveOnFullDisk(folder, 'adapter')
  t.match(adapter.outcome, /^ERR_IO cannot write .*adapter_model\.safetensors: the file would become larger/)
  t.same(adapter.files.sort(), ['adapter_config.json', 'adapter_model.safetensors'], 'no temporary file stays')
  t.ok(readFileSync(weights).equals(before))
  await model.loadAdapter(join(folder, 'adapter'), { name: 'again' })

  cpSync(source, join(folder, 'model'), { recursive: true })
  const whole = await saveOnFullDisk(folder, 'model')
  t.match(whole.outcome, /^ERR_IO cannot write .*model\.safetensors/)
  t.same(whole.files.sort(), readdirSync(source).sort())
  await (await Model.fromPretrained(join(folder, 'model'), { device: 'cpu' })).dispose()
})
