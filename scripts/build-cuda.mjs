// Builds the CUDA plugin into build-cuda/: real code for sm_80, sm_86, sm_89 and sm_90a, PTX for what comes later; then checks what
// must hold for it to run with nothing but a driver.
// usage: npm run build:cuda [-- --arch 80,90a] [--only norm,elementwise] [--jobs N]
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'

const MOST_MEGABYTES = 25
const LIBRARY = 'build-cuda/quantune-cuda.so'
const { values } = parseArgs({ options: { arch: { type: 'string' }, only: { type: 'string' }, jobs: { type: 'string' } } })

const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
const nvcc = [process.env.CUDACXX, 'nvcc', '/usr/local/cuda/bin/nvcc'].find((path) => path && has(path))
if (!nvcc) {
  console.error('nvcc was not found: install the CUDA toolkit (12.8 or newer), or name it by CUDACXX')
  process.exit(1)
}

const run = (command, args) => {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, CUDACXX: nvcc } })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}
const real = (values.arch ?? '80,86,89,90a').split(',').map((name) => `${name}-real`)
const architectures = [...real, ...(values.arch ? [] : ['90-virtual'])].join(';')
run('cmake', [
  '-S',
  'cuda',
  '-B',
  'build-cuda/cmake',
  `-DCMAKE_CUDA_ARCHITECTURES=${architectures}`,
  `-DQUANTUNE_CUDA_ONLY=${(values.only ?? '').replaceAll(',', ';')}`,
  '--log-level=WARNING',
])
run('cmake', [
  '--build',
  'build-cuda/cmake',
  '--target',
  'quantune-cuda',
  '--parallel',
  values.jobs ?? String(availableParallelism()),
])

if (!existsSync(LIBRARY)) throw new Error(`${LIBRARY} was not built`)
const problems = []
const megabytes = statSync(LIBRARY).size / 1e6
if (megabytes >= MOST_MEGABYTES) problems.push(`it has ${megabytes.toFixed(1)} MB, ${MOST_MEGABYTES} are allowed`)
if (process.platform === 'linux') {
  const needed = execFileSync('objdump', ['-p', LIBRARY], { encoding: 'utf8' }).matchAll(/NEEDED\s+(\S+)/g)
  const foreign = [...needed]
    .map(([, name]) => name)
    .filter((name) => !/^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|ld-linux)/.test(name))
  if (foreign.length > 0) problems.push(`it needs ${foreign.join(', ')}`)
  const symbols = execFileSync('nm', ['-D', '--defined-only', LIBRARY], { encoding: 'utf8' }).trim().split('\n')
  const names = symbols.map((line) => line.split(' ').at(-1))
  const unexpected = names.filter((name) => !/^quantune_/.test(name))
  if (unexpected.length > 0)
    problems.push(`it exports ${unexpected.length} more symbols than its own: ${unexpected.slice(0, 5).join(', ')}`)
}
console.log(`${LIBRARY}: ${megabytes.toFixed(1)} MB for ${architectures.replaceAll(';', ', ')}`)
for (const problem of problems) console.error(`${LIBRARY}: ${problem}`)
process.exitCode = problems.length > 0 ? 1 : 0
