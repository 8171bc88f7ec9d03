// What needs a GPU: the device primitives first, then the operation suite, the goldens and a training run on device cuda, and
// compute-sanitizer on the primitives where it is installed. usage: npm run test:gpu [-- --no-build] [--device cuda:1]
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'

const { values } = parseArgs({ options: { 'no-build': { type: 'boolean' }, device: { type: 'string', default: 'cuda' } } })
const index = values.device.split(':')[1] ?? '0'
let failed = 0
const run = (name, command, args, env = {}) => {
  const begin = Date.now()
  const { status } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env } })
  console.log(`==== ${name}: ${status === 0 ? 'ok' : 'FAILED'}, ${((Date.now() - begin) / 1000).toFixed(0)} s`)
  if (status !== 0) failed++
  return status === 0
}

const primitives = 'build-cuda/quantune-primitives'
if (!values['no-build']) {
  if (!run('build', 'npm', ['run', '--silent', 'build:cuda'])) process.exit(1)
  const target = [
    '--build',
    'build-cuda/cmake',
    '--target',
    'quantune-primitives',
    '--parallel',
    String(availableParallelism()),
  ]
  if (!run('build of the primitives', 'cmake', target)) process.exit(1)
}
// Nothing else can be right where these are wrong.
if (!run('device primitives', primitives, [index])) process.exit(1)
const sanitizer = ['compute-sanitizer', '/usr/local/cuda/bin/compute-sanitizer'].find(
  (path) =>
    (existsSync(path) || path === 'compute-sanitizer') && spawnSync(path, ['--version'], { stdio: 'ignore' }).status === 0,
)
const tap = ['tap', '--reporter=terse', '--jobs=4', '--timeout=600']
const env = { QUANTUNE_TEST_DEVICE: values.device, QUANTUNE_TEST_DEVICES: '1' }
run('operations', 'npx', [...tap, 'test/ops/*.test.ts'], env)
run('devices', 'npx', [...tap, 'test/cuda/*.test.ts'], env)
run('goldens', 'npx', [...tap, 'test/goldens/goldens.test.ts'], env)
if (sanitizer) {
  for (const tool of ['memcheck', 'racecheck', 'synccheck']) {
    run(`compute-sanitizer ${tool}`, sanitizer, ['--tool', tool, '--error-exitcode', '1', primitives, index])
  }
} else {
  console.log('==== compute-sanitizer: not installed, skipped')
}
process.exitCode = failed > 0 ? 1 : 0
