import t from 'tap'
import { differences, gradientDeviation, passed, valueDeviation } from './result.js'

t.test('deviations are those that the references allow or do not', async (t) => {
  t.equal(valueDeviation([1, 2], [1, 2]), 0)
  t.equal(valueDeviation([0.5], [0.25]), 0.25, 'absolute for small values')
  t.equal(valueDeviation([110], [100]), 0.1, 'relative for large ones')
  t.equal(gradientDeviation([0.1, 4], [0, 5]), 0.2, 'relative to the largest entry')
  for (const wrong of [[Number.NaN, 1], [1], []]) {
    t.equal(valueDeviation(wrong, [1, 1]), Number.POSITIVE_INFINITY)
    t.equal(gradientDeviation(wrong, [1, 1]), Number.POSITIVE_INFINITY)
  }
  t.equal(valueDeviation([1, Number.NaN, 3], [1, 2, 3]), Number.POSITIVE_INFINITY, 'whatever follows')
  t.equal(differences([1, 2, 3], [1, 3]), 2)
})

t.test('a case passes only if something was compared and all of it agrees', async (t) => {
  const figure = (deviation: number) => ({ what: 'x', deviation, tolerance: 1 })
  t.ok(passed({ name: 'a', figures: [figure(1)] }))
  t.notOk(passed({ name: 'a', figures: [figure(0), figure(1.1)] }))
  t.notOk(passed({ name: 'a', figures: [figure(Number.POSITIVE_INFINITY)] }))
  t.notOk(passed({ name: 'a', figures: [] }))
  t.notOk(passed({ name: 'a', error: new Error('broken') }))
})
