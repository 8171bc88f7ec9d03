/** Saves under a limit on the size of files (a disk that is full, for one process) and says what became of it. */
import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Model } from '../../../../lib/model/model.js'

const [source, folder, how] = process.argv.slice(2) as [string, string, 'adapter' | 'model']
const model = await Model.fromPretrained(source, { device: 'cpu', dtype: 'float32' })
model.addAdapter({ r: 32, targetModules: 'all-linear' })
// Node ignores this signal; tap's listener would end the process if it were the only one.
process.on('SIGXFSZ', () => {})
execFileSync('prlimit', ['--pid', String(process.pid), '--fsize=32768'])
const target = join(folder, how)
const saving = how === 'adapter' ? model.saveAdapter(target) : model.savePretrained(target, { mergeAdapter: true })
const outcome = await saving.then(
  () => 'saved',
  ({ code, message }) => `${code} ${message}`,
)
console.log(JSON.stringify({ outcome, files: readdirSync(target) }))
await model.dispose()
