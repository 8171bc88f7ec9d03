// Runs the operation suite and the goldens on every CPU variant: those that this CPU has with the addon that is installed, those
// with AVX-512 that it lacks with one built into build-simde/, in which SIMDe stands in for the missing instructions.
// usage: npm run test:variants [-- VARIANT…]
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { resolve } from 'node:path'

const features = process.platform === 'linux' ? readFileSync('/proc/cpuinfo', 'utf8') : ''
const needs = {
  generic: [],
  avx2: ['avx2', 'fma'],
  avx512: ['avx2', 'fma', 'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'],
  avx512bf16: ['avx2', 'fma', 'avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx512_bf16'],
}
const emulated = 'build-simde'

function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit', shell: true, env: { ...process.env, ...env } })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(needs)
let built = false
for (const variant of wanted) {
  const native = needs[variant].every((feature) => new RegExp(`\\b${feature}\\b`).test(features))
  if (!native && !variant.startsWith('avx512')) continue
  if (!native && !built) {
    run('cmake', ['-S', '.', '-B', emulated, '-DQUANTUNE_SIMDE=ON'])
    run('cmake', ['--build', emulated, '--target', 'quantune', '--parallel', String(availableParallelism())])
    built = true
  }
  console.log(`QUANTUNE_CPU=${variant}${native ? '' : ', emulated'}`)
  run('npx', ['tap', '--reporter=terse', 'test/ops/*.test.ts', 'test/goldens/*.test.ts'], {
    QUANTUNE_CPU: variant,
    ...(native ? {} : { QUANTUNE_BINARY: resolve(emulated, 'quantune.node') }),
  })
}
