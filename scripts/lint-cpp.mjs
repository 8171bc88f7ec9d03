// Checks (or with --fix, applies) clang-format on the native sources.
// usage: npm run lint:cpp [-- --fix]
import { execFileSync, spawnSync } from 'node:child_process'

const files = execFileSync('git', ['ls-files', 'csrc', 'cuda'], { encoding: 'utf8' })
  .split('\n')
  .filter((name) => /\.(cpp|h|cu|cuh)$/.test(name))
const mode = process.argv.includes('--fix') ? ['-i'] : ['--dry-run', '--Werror']
const { status, error } = spawnSync('clang-format', [...mode, ...files], { stdio: 'inherit' })
if (error) throw error
process.exit(status ?? 1)
