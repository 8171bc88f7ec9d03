import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { doctor } from '../../lib/doctor.js'
import { probe, whyRefused } from '../../lib/tensor/probe.js'

const cli = fileURLToPath(new URL('../../lib/cli.ts', import.meta.url))
const run = (...args: string[]) =>
  execFileSync(process.execPath, [...process.execArgv, cli, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })

t.test('the doctor says what there is, and why a device is refused', async (t) => {
  const report = await doctor()
  t.match(report, /^quantune \d+\.\d+\.\d+, Node /)
  t.match(report, /\ncpu +usable +(generic|avx2|avx512|avx512bf16) kernels, \d+ threads, /)
  t.match(report, /\ncuda(:0)? +(usable|refused) +\S/)
  t.match(report, /device 'auto' takes (cpu|cuda)$/)
})

t.test('quantune doctor', async (t) => {
  t.match(run('doctor'), /device 'auto' takes/)
  t.match(run('--help'), /usage: quantune doctor/)
  t.throws(() => run('nurse'), { status: 2, stderr: /usage/ } as object as Error)
})

t.test('a plugin that is not there, or is none', async (t) => {
  const folder = t.testdir({ 'quantune-cuda.so': 'not a library', 'quantune-cuda.dll': 'not a library' })
  const before = process.env.QUANTUNE_PLUGINS
  t.teardown(() => {
    if (before === undefined) delete process.env.QUANTUNE_PLUGINS
    else process.env.QUANTUNE_PLUGINS = before
  })
  process.env.QUANTUNE_PLUGINS = folder
  t.match(await whyRefused('cuda', { again: true }), /the plugin could not be opened/)
  process.env.QUANTUNE_PLUGINS = `${folder}/nowhere`
  t.match(await whyRefused('cuda', { again: true }), /not installed.*npm run build:cuda/)
  await t.rejects(probe('cuda'), { message: /not installed/ })
  t.equal(await whyRefused('cpu'), null)
})
