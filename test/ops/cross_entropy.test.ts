import t from 'tap'
import { numericGradient, openHarness } from './harness.js'
import { reference, testLosses } from './losses.js'

const h = await openHarness()

const sizes = [
  { m: 1, n: 3, k: 2, count: 1, dense: false },
  { m: 9, n: 50, k: 33, count: 5, dense: false },
  { m: 20, n: 70, k: 64, count: 45, dense: false },
]
testLosses(t, h, sizes, (type) => (type === 1 ? 'bfloat16' : 'float32'))

t.test('gradients by finite differences', async (t) => {
  const [x, w] = [h.random.normal([4, 3]), h.random.normal([6, 3])]
  const [rows, targets] = [
    [0, 2, 2, 3],
    [5, 1, 1, 0],
  ]
  const total = (values: { x?: Float64Array; w?: Float64Array }) => {
    const head = { transposed: false, bias: null, a: null, b: null }
    const operands = { x: { ...x, values: values.x ?? x.values }, w: { ...w, values: values.w ?? w.values } }
    return reference({ ...operands, ...head }, rows!, targets!).losses.reduce((sum, loss) => sum + loss, 0)
  }
  const [losses, dx, dw] = [h.garbage([4]), h.garbage([4, 3]), h.garbage([6, 3])]
  const indices = [h.operand(rows!, [4], 'int32').tensor, h.operand(targets!, [4], 'int32').tensor] as const
  h.ops.linear_cross_entropy(losses, dx, dw, null, null, null, x.tensor, w.tensor, null, null, null, ...indices, 0, 1)
  const close = { absolute: 1e-5, relative: 1e-5 }
  await h.close(
    t,
    dx,
    numericGradient((v) => total({ x: v }), x.values),
    close,
    'dx',
  )
  await h.close(
    t,
    dw,
    numericGradient((v) => total({ w: v }), w.values),
    close,
    'd_weight',
  )
})

t.test('large logits do not overflow, no targets give zeros', async (t) => {
  const [x, w] = [h.operand([1000, -1000], [2, 1]), h.operand([1, -1], [2, 1])]
  const losses = h.garbage([2])
  const index = (values: number[]) => h.operand(values, [values.length], 'int32').tensor
  const none = [null, null, null] as const
  h.ops.linear_cross_entropy(losses, null, null, ...none, x.tensor, w.tensor, ...none, index([0, 1]), index([0, 0]), 0, 1)
  await h.close(t, losses, [0, 2000], { absolute: 1e-6, relative: 1e-6 })
  const [empty, dx, dw] = [h.empty([0]), h.garbage([2, 1]), h.garbage([2, 1])]
  h.ops.linear_cross_entropy(empty, dx, dw, ...none, x.tensor, w.tensor, ...none, index([]), index([]), 0, 1)
  await h.equal(t, dx, [0, 0], 'dx')
  await h.equal(t, dw, [0, 0], 'd_weight')
})

t.test('rows and targets out of bounds are refused', async (t) => {
  const [x, w] = [h.random.normal([3, 2]), h.random.normal([4, 2])]
  const none = [null, null, null] as const
  const index = (values: number[]) => h.operand(values, [values.length], 'int32').tensor
  const attempt = (rows: number[], targets: number[]) => {
    const losses = h.empty([targets.length])
    const [r, i] = [index(rows), index(targets)]
    return [
      losses,
      () => h.ops.linear_cross_entropy(losses, null, null, ...none, x.tensor, w.tensor, ...none, r, i, 0, 1),
    ] as const
  }
  await h.rejects(t, ...attempt([0, 3], [0, 0]), /linear_cross_entropy.*target_rows\[1\] is 3, x has 3 rows/)
  await h.rejects(t, ...attempt([-1], [0]), /target_rows\[0\] is -1/)
  await h.rejects(t, ...attempt([0], [4]), /targets\[0\] is 4, the head has 4 rows/)
  await h.rejects(t, ...attempt([0], [-100]), /targets\[0\] is -100/)
  await h.rejects(t, ...attempt([2, 1], [0, 0]), /not ascending at 1/)
})
