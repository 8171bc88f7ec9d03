import { readFileSync } from 'node:fs'
import t from 'tap'
import { learningRateSchedule, type SchedulerType, warmupSteps } from '../../../lib/training/schedules.js'

interface Case {
  type: SchedulerType
  learningRate: number
  warmupSteps: number
  total: number
  kwargs: Record<string, unknown>
  learningRates: number[]
}

const camel = (kwargs: Record<string, unknown>) =>
  Object.fromEntries(Object.entries(kwargs).map(([key, v]) => [key.replace(/_(.)/g, (_, c: string) => c.toUpperCase()), v]))

t.test('learning rates are those of transformers', async (t) => {
  const cases: Case[] = JSON.parse(readFileSync('test/fixtures/training/schedules.json', 'utf8'))
  for (const { type, learningRate, warmupSteps, total, kwargs, learningRates } of cases) {
    const rate = learningRateSchedule(type, { learningRate, warmupSteps, totalSteps: total, kwargs: camel(kwargs) })
    const worst = Math.max(...learningRates.map((expected, step) => Math.abs(rate(step) - expected)))
    t.ok(worst <= learningRate * 1e-12, `${type} ${JSON.stringify(kwargs)}: off by ${worst}`)
  }
})

t.test('a warm-up below 1 is a share of all steps, rounded up', async (t) => {
  t.equal(warmupSteps({ warmupSteps: 0.03, totalSteps: 101 }), 4)
  t.equal(warmupSteps({ warmupSteps: 0, totalSteps: 101 }), 0)
  t.equal(warmupSteps({ warmupSteps: 1, totalSteps: 101 }), 1)
  const rate = learningRateSchedule('linear', { learningRate: 1, warmupSteps: 0.5, totalSteps: 4 })
  t.same([0, 1, 2, 3].map(rate), [0, 0.5, 1, 0.5])
})

t.test('a function is the whole schedule', async (t) => {
  const rate = learningRateSchedule((step, total) => 1 - step / total, { learningRate: 2, warmupSteps: 3, totalSteps: 4 })
  t.same([0, 1, 2, 3].map(rate), [2, 1.5, 1, 0.5])
  const broken = learningRateSchedule(() => Number.NaN, { learningRate: 2, warmupSteps: 0, totalSteps: 4 })
  t.throws(() => broken(1), { code: 'ERR_INVALID_ARGUMENT', message: /step 1.*NaN/ })
})

t.test('what cannot be is refused with what can', async (t) => {
  const make = (type: string, kwargs?: object) => () =>
    learningRateSchedule(type as SchedulerType, { learningRate: 1e-3, warmupSteps: 0, totalSteps: 4, kwargs })
  t.throws(make('cosin'), { code: 'ERR_INVALID_ARGUMENT', message: /did you mean "cosine"/ })
  t.throws(make('reduce_lr_on_plateau'), { code: 'ERR_INVALID_ARGUMENT', message: /follows a metric/ })
  t.throws(make('toString'), { code: 'ERR_INVALID_ARGUMENT' })
  t.throws(make('cosine_with_min_lr'), { message: /either minLr or minLrRate/ })
  t.throws(make('cosine', { num_cycles: 2 }), { message: /did you mean "numCycles"/ })
  t.throws(make('warmup_stable_decay'), { message: /numDecaySteps: expected a number, received undefined/ })
  t.throws(make('polynomial', { lrEnd: 1 }), { message: /lrEnd: expected less than learningRate/ })
})
