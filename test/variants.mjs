// Runs the operation suite and the goldens on every CPU variant that this machine has beside the one it would choose.
// usage: npm run test:variants
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

const flags = process.platform === 'linux' ? readFileSync('/proc/cpuinfo', 'utf8') : ''
const variants = ['generic']
if (/\bavx2\b/.test(flags)) variants.push('avx2')
for (const variant of variants) {
  console.log(`QUANTUNE_CPU=${variant}`)
  const { status } = spawnSync('npx', ['tap', '--reporter=terse', 'test/ops/*.test.ts', 'test/goldens/*.test.ts'], {
    stdio: 'inherit',
    shell: true,
    env: { ...process.env, QUANTUNE_CPU: variant },
  })
  if (status !== 0) process.exit(status ?? 1)
}
