import { existsSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { passed } from '../test/goldens/result.js'
import { describe, goldenCases, runCase } from '../test/goldens/run.js'

const USAGE = `usage: npm run goldens -- FOLDER [--only TEXT] [--device NAME] [--strict]

Checks the reference cases of FOLDER (forward, train, tokens, quantization, generation, chat; see test/fixtures/goldens) and prints a
line per case with its largest deviations, computed on a device (default: cpu). Ends with 1 when a case misses its tolerance; with --strict also when one cannot be run.`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { strict: { type: 'boolean', default: false }, only: { type: 'string' }, device: { type: 'string' } },
})
const [folder] = positionals
if (positionals.length !== 1 || !folder || !existsSync(folder)) {
  console.error(folder && !existsSync(folder) ? `there is no folder ${folder}` : USAGE)
  process.exit(2)
}

if (values.device) process.env.QUANTUNE_TEST_DEVICE = values.device
const cases = goldenCases(folder).filter(({ name }) => name.includes(values.only ?? ''))
const counts = { passed: 0, failed: 0, missing: 0 }
for (const golden of cases) {
  const result = await runCase(golden)
  counts['missing' in result ? 'missing' : passed(result) ? 'passed' : 'failed']++
  console.log(describe(result))
}
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.missing} missing`)
if (cases.length === 0) console.error(`${folder} holds no reference cases`)
process.exitCode = counts.failed > 0 || cases.length === 0 || (values.strict && counts.missing > 0) ? 1 : 0
