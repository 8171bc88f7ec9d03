import t from 'tap'
import { dot, numericGradient, openHarness, tolerance } from './harness.js'

const h = await openHarness()
const eps = 1e-5

interface Statistics {
  y: Float64Array
  mean: Float64Array
  rstd: Float64Array
}

/** Both norms in float64; RMSNorm takes 0 for the mean. */
function normalize(x: ArrayLike<number>, w: ArrayLike<number>, b: ArrayLike<number> | null, centered: boolean): Statistics {
  const width = w.length
  const rows = x.length / width
  const y = new Float64Array(x.length)
  const means = new Float64Array(rows)
  const rstds = new Float64Array(rows)
  for (let m = 0; m < rows; m++) {
    const row = Array.from({ length: width }, (_, k) => x[m * width + k]!)
    const mean = centered ? row.reduce((sum, v) => sum + v, 0) / width : 0
    const rstd = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / width + eps)
    row.forEach((v, k) => {
      y[m * width + k] = (v - mean) * rstd * w[k]! + (b ? b[k]! : 0)
    })
    means[m] = mean
    rstds[m] = rstd
  }
  return { y, mean: means, rstd: rstds }
}

const sums = { absolute: 2e-5, relative: 1e-5 }
const close = { float32: sums, bfloat16: { absolute: 2e-2, relative: 1e-2 } }

for (const dtype of ['float32', 'bfloat16'] as const) {
  for (const [rows, width] of [
    [1, 1],
    [3, 7],
    [70, 33],
    [5, 576],
  ] as const) {
    t.test(`rms_norm ${dtype} [${rows}, ${width}]`, async (t) => {
      const x = h.random.normal([rows, width], { dtype, mean: 0.3 })
      for (const stored of ['float32', 'bfloat16', 'float16'] as const) {
        const w = h.random.normal([width], { dtype: stored })
        const expected = normalize(x.values, w.values, null, false)
        const y = h.garbage([rows, width], dtype)
        const rstd = h.garbage([rows])
        h.ops.rms_norm(y, rstd, x.tensor, w.tensor, eps)
        await h.close(t, y, expected.y, tolerance[dtype], `y, weight ${stored}`)
        await h.close(t, rstd, expected.rstd, tolerance.float32, 'rstd')
        h.ops.rms_norm(y, null, x.tensor, w.tensor, eps)
        await h.close(t, y, expected.y, tolerance[dtype], 'without rstd')
      }
    })

    t.test(`layer_norm ${dtype} [${rows}, ${width}]`, async (t) => {
      const x = h.random.normal([rows, width], { dtype, mean: 0.3 })
      const w = h.random.normal([width])
      const b = h.random.normal([width], { dtype: 'bfloat16' })
      for (const bias of [b, null]) {
        const expected = normalize(x.values, w.values, bias?.values ?? null, true)
        const y = h.garbage([rows, width], dtype)
        const [mean, rstd] = [h.garbage([rows]), h.garbage([rows])]
        h.ops.layer_norm(y, mean, rstd, x.tensor, w.tensor, bias?.tensor ?? null, eps)
        await h.close(t, y, expected.y, { absolute: tolerance[dtype].absolute * 4, relative: tolerance[dtype].relative }, 'y')
        await h.close(t, mean, expected.mean, tolerance.float32, 'mean')
        await h.close(t, rstd, expected.rstd, { absolute: 1e-6, relative: 1e-5 }, 'rstd')
      }
    })
  }

  for (const centered of [false, true]) {
    const name = centered ? 'layer_norm_backward' : 'rms_norm_backward'
    t.test(`${name} ${dtype}`, async (t) => {
      for (const [rows, width] of [
        [3, 7],
        [67, 5],
        [2, 40],
      ] as const) {
        const x = h.random.normal([rows, width], { dtype })
        const dy = h.random.normal([rows, width], { dtype })
        const w = h.random.normal([width])
        const b = h.random.normal([width])
        const of = (xs: Float64Array, ws: Float64Array, bs: Float64Array) =>
          dot(normalize(xs, ws, centered ? bs : null, centered).y, dy.values)
        const dx = numericGradient((v) => of(v, w.values, b.values), x.values)
        const dw = numericGradient((v) => of(x.values, v, b.values), w.values)
        const db = numericGradient((v) => of(x.values, w.values, v), b.values)
        const forward = normalize(x.values, w.values, null, centered)
        const [mean, rstd] = [h.operand(forward.mean), h.operand(forward.rstd)]
        const call = (dX: ReturnType<typeof h.empty> | null, dW: typeof dX, dB: typeof dX, accumulate: number) =>
          centered
            ? h.ops.layer_norm_backward(dX, dW, dB, dy.tensor, x.tensor, w.tensor, mean.tensor, rstd.tensor, accumulate)
            : h.ops.rms_norm_backward(dX, dW, dy.tensor, x.tensor, w.tensor, rstd.tensor, accumulate)
        const shape = `[${rows}, ${width}]`
        const out = h.garbage([rows, width], dtype)
        const [outW, outB] = [h.operand(new Array(width).fill(1)), h.operand(new Array(width).fill(2))]
        call(out, outW.tensor, centered ? outB.tensor : null, 0)
        await h.close(t, out, dx, close[dtype], `dx ${shape}`)
        await h.close(
          t,
          outW.tensor,
          dw.map((v) => 1 + v),
          sums,
          `d_weight accumulates ${shape}`,
        )
        if (centered)
          await h.close(
            t,
            outB.tensor,
            db.map((v) => 2 + v),
            sums,
            `d_bias accumulates ${shape}`,
          )

        const sum = h.operand(new Array(rows * width).fill(0.5), [rows, width], dtype)
        call(sum.tensor, null, null, 1)
        await h.close(
          t,
          sum.tensor,
          dx.map((v) => 0.5 + v),
          close[dtype],
          `dx accumulates ${shape}`,
        )
        const alone = h.zeros([width])
        call(null, alone, null, 0)
        await h.close(t, alone, dw, sums, `d_weight alone ${shape}`)
      }
    })
  }
}

t.test('refused', async (t) => {
  const x = h.zeros([2, 8])
  const y = h.empty([2, 8])
  await h.rejects(t, y, () => h.ops.rms_norm(y, null, x, h.zeros([7]), eps), /weight/)
  const wrong = h.empty([2, 8], 'bfloat16')
  await h.rejects(t, wrong, () => h.ops.rms_norm(wrong, null, x, h.zeros([8]), eps), /dtype|float32|bfloat16/)
  const z = h.empty([2, 8])
  await h.rejects(t, z, () => h.ops.layer_norm(z, null, null, x, h.zeros([8]), h.zeros([9]), eps), /bias/)
})
