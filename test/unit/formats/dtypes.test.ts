import fc from 'fast-check'
import t from 'tap'
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from '../../../lib/formats/dtypes.js'

const every = Uint16Array.from({ length: 1 << 16 }, (_, i) => i)

/** The neighbours in the grid of representable values, found by their definition rather than by bit tricks. */
function nearest(value: number, grid: Float64Array): number[] {
  let low = 0
  let high = grid.length - 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (grid[middle]! <= value) low = middle
    else high = middle
  }
  const [a, b] = [grid[low]!, grid[high]!]
  const difference = value - a - (b - value)
  return difference < 0 ? [a] : difference > 0 ? [b] : [a, b]
}

for (const [name, encode, decode, quietBit] of [
  ['bfloat16', toBfloat16, fromBfloat16, 0x40],
  ['float16', toFloat16, fromFloat16, 0x200],
] as const) {
  t.test(name, async (t) => {
    const values = decode(every)
    const again = encode(values)
    const wrong = every.filter((bits) => (Number.isNaN(values[bits]!) ? !(again[bits]! & quietBit) : again[bits] !== bits))
    t.equal(wrong.length, 0, 'every pattern survives a round trip, NaN as NaN')
    const grid = Float64Array.from(values.filter(Number.isFinite)).sort()
    const largest = grid[grid.length - 1]!
    fc.assert(
      fc.property(fc.float({ noNaN: true, min: Math.fround(-largest), max: Math.fround(largest) }), (value) => {
        const bits = encode(new Float32Array([value]))
        const candidates = nearest(value, grid)
        const got = decode(bits)[0]!
        return candidates.includes(got) && (candidates.length === 1 || candidates[0] === candidates[1] || (bits[0]! & 1) === 0)
      }),
      { numRuns: 2000 },
    )
    t.equal(decode(encode(new Float32Array([3.4e38])))[0], Number.POSITIVE_INFINITY)
    t.same(encode(new Float32Array([-0]))[0], 0x8000)
  })
}
t.same(toFloat16(new Float32Array([65519, 65520, 2 ** -25, 3 * 2 ** -25])), new Uint16Array([0x7bff, 0x7c00, 0, 2]))
