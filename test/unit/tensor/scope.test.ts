import t from 'tap'
import { Device, inScope, keep, scope, Tensor } from '../../../lib/tensor/index.js'

const device = await Device.open('cpu')
const one = () => Tensor.from(device, [1])

t.test('drops what it does not return', (t) => {
  let inside: Tensor | undefined
  const returned = scope(() => {
    inside = one()
    return { a: one(), list: [one()], map: new Map([['b', one()]]), set: new Set([one()]), text: 'x', none: null }
  })
  t.ok(inside?.disposed)
  const tensors = [returned.a, ...returned.list, ...returned.map.values(), ...returned.set]
  t.ok(tensors.every((tensor) => !tensor.disposed))
  for (const tensor of tensors) tensor.dispose()
  t.equal(
    scope(() => 5),
    5,
  )
  t.end()
})

t.test('what it returns belongs to the enclosing scope', (t) => {
  let inner: Tensor | undefined
  scope(() => {
    inner = scope(one)
    t.notOk(inner.disposed)
    t.ok(inScope())
  })
  t.ok(inner?.disposed)
  t.notOk(inScope())
  t.end()
})

t.test('retained and kept tensors outlive it', (t) => {
  let retained: Tensor | undefined
  let kept: Tensor | undefined
  scope(() => {
    retained = one().retain()
    scope(() => {
      kept = keep(one())
    })
    t.notOk(kept?.disposed)
  })
  t.notOk(retained?.disposed)
  t.notOk(kept?.disposed)
  retained?.dispose()
  kept?.dispose()
  t.ok(retained?.disposed && kept?.disposed)
  t.end()
})

t.test('a throwing function drops everything', (t) => {
  let inside: Tensor | undefined
  const failing = () =>
    scope(() => {
      inside = one()
      throw new Error('no')
    })
  t.throws(failing, { message: 'no' })
  t.ok(inside?.disposed)
  t.notOk(inScope())
  t.end()
})

t.test('a promise is an error', (t) => {
  let inside: Tensor | undefined
  const asynchronous = () =>
    scope(async () => {
      inside = one()
    })
  t.throws(asynchronous, { code: 'ERR_INVALID_ARGUMENT', message: /synchronous/ })
  t.ok(inside?.disposed)
  t.end()
})
