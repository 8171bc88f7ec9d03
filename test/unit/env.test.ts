import t from 'tap'
import { drawSeed, env, getSeed, log, setSeed } from '../../lib/env.js'

t.test('log level and logger', (t) => {
  const said: string[] = []
  const { logger, logLevel } = env
  env.logger = (level, message) => said.push(`${level} ${message}`)
  env.logLevel = 'silent'
  log('error', 'nobody hears')
  log('debug', () => String(t.fail('is not even made')))
  env.logLevel = 'info'
  log('error', 'one')
  log('info', () => 'two')
  log('debug', 'three')
  t.strictSame(said, ['error one', 'info two'])
  t.throws(
    () => {
      env.logLevel = 'loud' as 'info'
    },
    { code: 'ERR_INVALID_ARGUMENT', message: /silent, error, warn, info, debug, got loud/ },
  )
  Object.assign(env, { logger, logLevel })
  t.end()
})

t.test('threads', (t) => {
  for (const wrong of [0, 1.5, 300, Number.NaN]) {
    t.throws(
      () => {
        env.numThreads = wrong
      },
      { code: 'ERR_INVALID_ARGUMENT' },
    )
  }
  t.ok(env.numThreads >= 1)
  process.env.QUANTUNE_NUM_THREADS = '3'
  t.equal(env.numThreads, 3)
  process.env.QUANTUNE_NUM_THREADS = 'many'
  t.throws(() => env.numThreads, { message: /QUANTUNE_NUM_THREADS must be an integer from 1 to 256, got many/ })
  env.numThreads = 2
  t.equal(env.numThreads, 2, 'what was set goes before the environment')
  t.end()
})

t.test('seeds', (t) => {
  setSeed(7)
  t.equal(getSeed(), 7)
  const first = [drawSeed(), drawSeed(), drawSeed()]
  t.equal(new Set(first).size, 3)
  setSeed(7)
  t.strictSame([drawSeed(), drawSeed(), drawSeed()], first)
  setSeed(8)
  t.not(drawSeed(), first[0])
  t.throws(() => setSeed(-1), { code: 'ERR_INVALID_ARGUMENT' })
  t.end()
})
