import t from 'tap'
import { Device } from '../../../lib/tensor/device.js'
import { keep } from '../../../lib/tensor/scope.js'
import { Tensor } from '../../../lib/tensor/tensor.js'

const [LAYERS, PASSES] = [16, 40]

/** Numbers that are the same every time (a linear congruential generator). */
function numbers(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state % below
  }
}

t.test('passes of changing sizes need no more of the system than the largest of them', async (t) => {
  const device = await Device.open('cpu')
  const below = numbers(7)
  /** What layers keep for the way back (keys, values, small ones), and what they need for a moment. */
  const pass = (rows: number) => {
    const zeros = (width: number) => keep(Tensor.zeros(device, [rows, width]))
    const moment = (...widths: number[]) => {
      for (const tensor of widths.map(zeros)) tensor.dispose()
    }
    const layers = Array.from({ length: LAYERS }, () => {
      moment(192, 576)
      return [192, 16, 192, 16, 9].map(zeros)
    })
    for (const kept of layers.reverse()) {
      moment(192, 192, 16)
      for (const tensor of kept) tensor.dispose()
    }
  }
  const before = process.memoryUsage.rss()
  for (let i = 0; i < PASSES; i++) {
    pass(300 + below(700))
    await device.settled()
  }
  const grown = process.memoryUsage.rss() - before
  const { peak } = device.memoryUsage()
  // What the allocator keeps for the next pass beyond the largest use, rounding of sizes, and JavaScript's own garbage.
  t.ok(grown < 1.2 * peak.total + 48e6, `${grown} bytes more are resident; the tensors needed ${peak.total}`)
})

t.test('weights of all sizes keep their values while others come and go', async (t) => {
  const device = await Device.open('cpu')
  const below = numbers(11)
  const held: { tensor: Tensor; value: number }[] = []
  const check = async ({ tensor, value }: { tensor: Tensor; value: number }) => {
    const values = (await tensor.data()) as Float32Array
    t.ok(
      values.every((x) => x === value),
      `${values.length} times ${value}`,
    )
    tensor.dispose()
  }
  for (let i = 1; i <= 150; i++) {
    const size = 1 << (8 + below(13)) // up to 4 MiB of float32, and more
    const tensor = keep(Tensor.empty(device, [size + below(size)], 'float32', 'weights'))
    device.ops.fill(tensor, i)
    held.push({ tensor, value: i })
    if (held.length > 40) await check(held.splice(below(held.length), 1)[0]!)
  }
  for (const each of held) await check(each)
  await device.settled()
  t.equal(device.memoryUsage().current.weights, 0)
})
