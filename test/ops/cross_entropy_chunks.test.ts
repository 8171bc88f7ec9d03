import t from 'tap'
import { openHarness } from './harness.js'
import { testLosses } from './losses.js'

const h = await openHarness()

// More than a chunk of rows.
testLosses(t, h, [{ m: 450, n: 37, k: 8, count: 460, dense: true }], () => 'float32')
testLosses(t, h, [{ m: 900, n: 20, k: 64, count: 800, dense: false }], (type) => (type === 1 ? 'bfloat16' : 'float32'))
