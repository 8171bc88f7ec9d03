/** Runs the operations' tests again on the variants of the CPU backend that were not chosen, each in its own process. */
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Device } from '../../lib/tensor/index.js'

const folder = dirname(fileURLToPath(import.meta.url))
const variants = ['generic', 'avx2', 'avx512']
const device = await Device.open('cpu')
const files = readdirSync(folder).filter((file) => file.endsWith('.test.ts') && file !== 'variants.test.ts')

function run(file: string, environment: Record<string, string>): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...process.execArgv, join(folder, file)], {
      env: { ...process.env, ...environment },
    })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text))
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, output }))
  })
}

// A variant above the one that was chosen is one that this CPU lacks.
const below = variants.slice(0, variants.indexOf(device.variant))
for (const variant of process.env.QUANTUNE_CPU ? [] : below) {
  t.test(variant, async (t) => {
    for (const file of files) {
      const { code, output } = await run(file, { QUANTUNE_CPU: variant })
      t.equal(code, 0, `${file} passes`, code === 0 ? {} : { output: output.slice(-4000) })
    }
  })
}
if (below.length === 0) t.pass('this CPU has the generic variant alone')
