// Builds the addon with the address and undefined-behaviour sanitizers into build-sanitize/ and runs on it the tests of the
// operations and of the queue. usage: npm run test:sanitize [-- thread]
import { execFileSync, spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { resolve } from 'node:path'

const sanitizers = process.argv[2] ?? 'address,undefined'
const folder = `build-sanitize-${sanitizers.replace(',', '-')}`
const run = (command, args, env = {}) => {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env } })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

run('cmake', ['-S', '.', '-B', folder, `-DQUANTUNE_SANITIZE=${sanitizers}`])
run('cmake', ['--build', folder, '--parallel', String(availableParallelism())])
// Node is not built with them, so their runtime must be there before it starts.
const library = sanitizers.startsWith('thread') ? 'libtsan.so' : 'libasan.so'
const runtime = execFileSync('c++', [`-print-file-name=${library}`], { encoding: 'utf8' }).trim()
const tests = [
  'test/ops/*.test.ts',
  'test/unit/tensor/queue.test.ts',
  'test/unit/tensor/record.test.ts',
  'test/unit/tensor/tensor.test.ts',
]
run('npx', ['tap', '--reporter=terse', ...tests], {
  QUANTUNE_BINARY: resolve(folder, 'quantune.node'),
  LD_PRELOAD: runtime,
  ASAN_OPTIONS: 'detect_leaks=0', // what Node holds until it exits
})
