// What needs a GPU: the device primitives first, then the operation suite, the goldens and training runs on device cuda, and
// compute-sanitizer on the primitives where it is installed.
// usage: npm run test:gpu [-- OPTION…]
//   --device cuda:1
//   --arch 90a           compile for this GPU alone: a fifth of the time
//   --no-build           run what is there
//   --steps N            of the long training, default 10000
//   --compiled           the test files as JavaScript in dist/, run by Node alone, for a machine without npm and compilers; before:
//                        npx tsc -p . --noEmit false --incremental false --outDir dist
//   --memcheck a,b       with --compiled: these operations' tests under compute-sanitizer too (norm,linear,…; each takes minutes)
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    arch: { type: 'string' },
    'no-build': { type: 'boolean' },
    steps: { type: 'string', default: '10000' },
    compiled: { type: 'boolean' },
    memcheck: { type: 'string', default: '' },
  },
})
const index = values.device.split(':')[1] ?? '0'
const failed = []
const run = (name, command, args, env = {}, options = {}) => {
  const begin = Date.now()
  const { status, error, stdout } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env }, ...options })
  if (status !== 0 && stdout) console.log(failures(stdout.toString()))
  const outcome = status === 0 ? 'ok' : `FAILED${error ? ` (${error.message})` : ''}`
  console.log(`==== ${name}: ${outcome}, ${((Date.now() - begin) / 1000).toFixed(0)} s`)
  if (status !== 0) failed.push(name)
  return status === 0
}

/** What a test's output says of the assertions that failed. */
function failures(output) {
  const lines = output.split('\n')
  const starts = lines.flatMap((line, i) => (/^ *not ok /.test(line) ? [i] : [])).slice(0, 5)
  return starts.length > 0 ? starts.map((i) => lines.slice(i, i + 12).join('\n')).join('\n') : lines.slice(-20).join('\n')
}

const primitives = 'build-cuda/quantune-primitives'
if (!values['no-build']) {
  const arch = values.arch ? ['--arch', values.arch] : []
  if (!run('build', process.execPath, ['scripts/build-cuda.mjs', ...arch])) process.exit(1)
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
if (!run('device primitives', primitives, [index], {}, { timeout: 120_000 })) process.exit(1)
if (values.compiled) run('doctor', process.execPath, ['dist/lib/cli.js', 'doctor'])
else run('doctor', 'npm', ['run', '--silent', 'doctor'])

const env = { QUANTUNE_TEST_DEVICE: values.device, QUANTUNE_TEST_DEVICES: '1', QUANTUNE_TEST_STEPS: values.steps }
const compiledFile = (file) => join('dist', file.replace(/\.ts$/, '.js'))
const filesIn = (folder) => readdirSync(folder).filter((file) => file.endsWith('.test.ts'))
/** Test files on the device; `jobs` at a time, so far as tap runs them. */
function test(name, files, { jobs = 1, seconds = 600, ...more } = {}) {
  const set = { ...env, ...more.env }
  if (!values.compiled) {
    run(name, 'npx', ['tap', '--reporter=terse', `--jobs=${jobs}`, `--timeout=${seconds}`, ...files], set)
    return
  }
  const alone = { stdio: ['ignore', 'pipe', 'inherit'], timeout: seconds * 1000, maxBuffer: 1 << 28 }
  for (const file of files)
    run(`${name}: ${file}`, process.execPath, [compiledFile(file)], { ...set, TAP_TIMEOUT: String(seconds) }, alone)
}
if (values.compiled) cpSync('test/fixtures', 'dist/test/fixtures', { recursive: true })
const operations = filesIn('test/ops').map((file) => `test/ops/${file}`)
test('operations', operations, { jobs: 4 })
// Their matrices are small: on so large a GPU the kernels for large ones, Hopper's among them, are not chosen. With four
// multiprocessors they are.
const products = /\/(linear|matmul|int8|cross_entropy|cross_entropy_chunks)\./
const four = { QUANTUNE_TEST_MULTIPROCESSORS: '4' }
test(
  'products in tiles of large matrices',
  operations.filter((file) => products.test(file)),
  { jobs: 4, env: four },
)
// One at a time: some take all the memory there is.
const long = 'test/cuda/long_train.test.ts'
const devices = filesIn('test/cuda').map((file) => `test/cuda/${file}`)
test(
  'devices',
  devices.filter((file) => file !== long),
)
test('goldens', ['test/goldens/goldens.test.ts'])
test('long training', [long], { seconds: 1800 })

const sanitizer = ['compute-sanitizer', '/usr/local/cuda/bin/compute-sanitizer'].find(
  (path) =>
    (existsSync(path) || path === 'compute-sanitizer') && spawnSync(path, ['--version'], { stdio: 'ignore' }).status === 0,
)
if (sanitizer) {
  for (const tool of ['memcheck', 'racecheck', 'synccheck']) {
    run(`compute-sanitizer ${tool}`, sanitizer, ['--tool', tool, '--error-exitcode', '1', primitives, index])
  }
  for (const op of values.compiled ? values.memcheck.split(',').filter(Boolean) : []) {
    const command = [process.execPath, compiledFile(`test/ops/${op}.test.ts`)]
    run(`compute-sanitizer memcheck ${op}`, sanitizer, ['--tool', 'memcheck', '--error-exitcode', '1', ...command], env)
  }
} else {
  console.log('==== compute-sanitizer: not installed, skipped')
}
if (failed.length > 0) console.log(`failed: ${failed.join(', ')}`)
process.exitCode = failed.length > 0 ? 1 : 0
