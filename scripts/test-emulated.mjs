// Compiles the CUDA kernels for the SIMT emulation and runs tests on the device cuda-emulated.
// usage: npm run test:emulated -- [OPTION…] [TEST FILE…]        (without files: the operation suite)
//   --only norm,elementwise    compile these families alone; the operations of the others are unsupported
//   --build FOLDER             instead of build-cuda-emulated[-sanitize|-race]
//   --sanitize | --race        address and undefined-behaviour sanitizers | the check for data races
//   --schedule forward|reverse|random   --async eager|lazy|sometimes   --seed N   --late MICROSECONDS   --sm 80|90
//   --devices N   --memory MEBIBYTES
//   --primitives               first the device primitives and the planted mistakes
//   --no-build                 run what is there
import { execFileSync, spawnSync } from 'node:child_process'
import { resolve } from 'node:path'

const options = {}
const files = []
const flags = new Set(['sanitize', 'race', 'no-build', 'primitives'])
const args = process.argv.slice(2)
while (args.length > 0) {
  const word = args.shift()
  if (!word.startsWith('--')) files.push(word)
  else options[word.slice(2)] = flags.has(word.slice(2)) ? true : args.shift()
}

const run = (command, args, env = {}) => {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env } })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

const kind = options.race ? 'race' : options.sanitize ? 'sanitize' : 'plain'
const folder = options.build ?? `build-cuda-emulated${kind === 'plain' ? '' : `-${kind}`}`
if (!options['no-build']) {
  const only = (options.only ?? '').replaceAll(',', ';')
  const define = ['-DQUANTUNE_CUDA_EMULATED=ON', `-DQUANTUNE_CUDA_EMULATION=${kind}`, `-DQUANTUNE_CUDA_ONLY=${only}`]
  run('cmake', ['-S', 'cuda', '-B', folder, ...define, '--log-level=WARNING'])
  const targets = ['quantune-cuda-emulated', ...(options.primitives ? ['quantune-primitives'] : [])]
  run('cmake', ['--build', folder, '--parallel', '2', '--target', ...targets])
}

const env = {
  QUANTUNE_PLUGINS: resolve(folder),
  QUANTUNE_TEST_DEVICES: '1',
  QUANTUNE_TEST_DEVICE: 'cuda-emulated',
  QUANTUNE_EMULATION: [
    options.schedule ?? 'forward',
    options.async ?? 'eager',
    ...['seed', 'late', 'sm', 'devices', 'memory'].filter((name) => options[name]).map((name) => `${name}:${options[name]}`),
  ].join(),
}
if (options.primitives) {
  // They choose schedules themselves.
  const QUANTUNE_EMULATION = options.sm ? `sm:${options.sm}` : ''
  run(`${folder}/quantune-primitives`, [], { ASAN_OPTIONS: 'detect_leaks=0', QUANTUNE_EMULATION })
}
if (kind === 'sanitize') {
  // Node is not built with them, so their runtime must be there before it starts.
  env.LD_PRELOAD = execFileSync('c++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim()
  env.ASAN_OPTIONS = 'detect_leaks=0:detect_stack_use_after_return=0' // Node leaks; fibers have stacks of their own
}
// The checks make kernels many times slower than what the tests' own time limit is for.
const limit = kind === 'plain' ? [] : ['--timeout=600']
run('npx', ['tap', '--reporter=terse', ...limit, ...(files.length > 0 ? files : ['test/ops/*.test.ts'])], env)
