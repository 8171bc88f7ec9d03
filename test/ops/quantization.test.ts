/** Codes, scales and values against bitsandbytes' own, bit for bit. */
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { readSafetensorsHeader } from '../../lib/formats/safetensors.js'
import { Tensor } from '../../lib/tensor/index.js'
import { openHarness } from './harness.js'

const h = await openHarness()
const folder = new URL('../fixtures/goldens/', import.meta.url)

/** Tensors of a safetensors file as typed arrays. */
async function open(name: string) {
  const path = fileURLToPath(new URL(name, folder))
  const [{ entries }, bytes] = [await readSafetensorsHeader(path), await readFile(path)]
  const take = (key: string) => {
    const entry = entries.get(key)
    if (!entry) throw new Error(`no ${key} in ${name}`)
    const copy = new Uint8Array(bytes.subarray(entry.byteOffset, entry.byteOffset + entry.byteLength))
    return {
      shape: entry.shape,
      bytes: copy,
      get floats() {
        return new Float32Array(copy.buffer)
      },
    }
  }
  return { names: [...entries.keys()], take }
}

interface Expected {
  type: 'nf4' | 'fp4'
  blockSize: 64 | 128
  weight: { shape: readonly number[]; floats: Float32Array }
  codes: Uint8Array
  absmax: Uint8Array | Float32Array
  nested: { absmax: Float32Array; code: Float32Array; offset: number } | null
  dequantized: Float32Array | null
}

const device = h.device
const load = (values: Uint8Array | Float32Array) =>
  Tensor.from(device, values, [values.length], values instanceof Uint8Array ? 'uint8' : 'float32')

function exported(q: Tensor, { codes, absmax, nested }: Expected) {
  const out = {
    codes: h.garbage([codes.length], 'uint8'),
    absmax: h.garbage([absmax.length], nested ? 'uint8' : 'float32'),
    nestedAbsmax: nested && h.garbage([nested.absmax.length]),
    nestedCode: nested && h.garbage([256]),
    offset: nested && h.garbage([1]),
  }
  h.ops.quantized_export(out.codes, out.absmax, out.nestedAbsmax, out.nestedCode, out.offset, q)
  return out
}

/** Equal element by element, without comparing tens of thousands of them one assertion each. */
async function same(t: Test, actual: Tensor, expected: ArrayLike<number>, message: string) {
  const values = await h.read(actual)
  const different = values.findIndex((value, i) => !Object.is(value + 0, expected[i]! + 0))
  t.equal(values.length, expected.length, `${message}: as many`)
  t.equal(different, -1, `${message}: ${values[different]} instead of ${expected[different]} at ${different}`)
}

async function check(t: Test, expected: Expected) {
  const { type, blockSize, weight, codes, absmax, nested } = expected
  const make = () => Tensor.emptyQuantized(device, weight.shape, { type, blockSize, doubleQuant: nested !== null })
  const q = make()
  h.ops.quantize(q, Tensor.from(device, weight.floats, weight.shape))
  const out = exported(q, expected)
  await same(t, out.codes, codes, 'codes')
  await same(t, out.absmax, absmax, 'absmax')
  if (nested && out.nestedAbsmax && out.nestedCode && out.offset) {
    await same(t, out.nestedAbsmax, nested.absmax, 'nested absmax')
    await same(t, out.nestedCode, nested.code, 'nested code')
    await same(t, out.offset, [nested.offset], 'offset')
  }
  const loaded = make()
  h.ops.quantized_load(
    loaded,
    load(codes),
    load(absmax),
    nested && load(nested.absmax),
    nested && load(nested.code),
    nested?.offset ?? 0,
  )
  const [values, again] = [h.garbage(weight.shape), h.garbage(weight.shape)]
  h.ops.dequantize(values, q)
  h.ops.dequantize(again, loaded)
  if (expected.dequantized) await same(t, values, expected.dequantized, 'dequantized')
  await same(t, again, await h.read(values), 'loaded and dequantized')
}

const golden = await open('quantization/four_bit.safetensors')
for (const type of ['nf4', 'fp4'] as const) {
  for (const blockSize of [64, 128] as const) {
    for (const doubleQuant of [false, true]) {
      const name = `${type}_${blockSize}_${doubleQuant ? 'double' : 'single'}`
      t.test(name, async (t) => {
        const take = (part: string) => golden.take(`${name}.${part}`)
        await check(t, {
          ...{ type, blockSize, weight: take('weight'), codes: take('packed').bytes },
          absmax: doubleQuant ? take('absmax').bytes : take('absmax').floats,
          nested: doubleQuant
            ? { absmax: take('nested_absmax').floats, code: take('nested_code').floats, offset: take('offset').floats[0]! }
            : null,
          dequantized: take('dequantized').floats,
        })
      })
    }
  }
}

t.test('a model that bitsandbytes quantized', async (t) => {
  const [original, model] = [await open('models/llama/model.safetensors'), await open('models/llama_bnb_nf4/model.safetensors')]
  const quantized = model.names.filter((name) => name.endsWith('.quant_state.bitsandbytes__nf4'))
  t.ok(quantized.length > 10, 'has quantized weights')
  for (const name of quantized) {
    const weight = name.slice(0, -'.quant_state.bitsandbytes__nf4'.length)
    const state = JSON.parse(Buffer.from(model.take(name).bytes).toString())
    await check(t, {
      ...{ type: 'nf4', blockSize: 64, weight: original.take(weight), codes: model.take(weight).bytes },
      absmax: model.take(`${weight}.absmax`).bytes,
      nested: {
        absmax: model.take(`${weight}.nested_absmax`).floats,
        code: model.take(`${weight}.nested_quant_map`).floats,
        offset: Math.fround(state.nested_offset),
      },
      dequantized: null,
    })
  }
})

t.test('sizes that no block divides, an odd one, other storages', async (t) => {
  for (const shape of [[3, 7], [1], [5, 77], [2, 129]]) {
    for (const blockSize of [64, 128] as const) {
      const w = h.random.normal(shape, { dtype: 'bfloat16' })
      const q = Tensor.emptyQuantized(device, shape, { type: 'nf4', blockSize, doubleQuant: false })
      h.ops.quantize(q, w.tensor)
      const values = h.garbage(shape)
      h.ops.dequantize(values, q)
      const actual = await h.read(values)
      const n = actual.length
      let worst = 0
      for (let start = 0; start < n; start += blockSize) {
        const end = Math.min(start + blockSize, n)
        const largest = w.values.subarray(start, end).reduce((most, value) => Math.max(most, Math.abs(value)), 0)
        for (let i = start; i < end; i++) worst = Math.max(worst, Math.abs(actual[i]! - w.values[i]!) / largest)
      }
      t.ok(worst <= 0.1519037, `[${shape}] block ${blockSize}: within half the widest gap of the code, ${worst}`)
      for (const dtype of ['bfloat16', 'float16'] as const) {
        const narrow = h.garbage(shape, dtype)
        h.ops.dequantize(narrow, q)
        await same(t, narrow, h.operand(actual, shape, dtype).values, `in ${dtype}`)
      }
    }
  }
})

t.test('zeros stay zeros', async (t) => {
  for (const type of ['nf4', 'fp4'] as const) {
    for (const doubleQuant of [false, true]) {
      const q = Tensor.emptyQuantized(device, [2, 64], { type, blockSize: 64, doubleQuant })
      h.ops.quantize(q, h.zeros([2, 64]))
      const values = h.garbage([2, 64])
      h.ops.dequantize(values, q)
      t.ok(
        (await h.read(values)).every((value) => value === 0),
        `${type}, double quantization ${doubleQuant}`,
      )
    }
  }
})

t.test('parts that do not fit are refused', async (t) => {
  const [codes, absmax] = [h.zeros([64], 'uint8'), h.zeros([2], 'uint8')]
  const attempt = (doubleQuant: boolean, scales: Tensor, codes_ = codes) => {
    const out = h.garbage([2, 64])
    const load = () => {
      const q = Tensor.emptyQuantized(device, [2, 64], { type: 'nf4', blockSize: 64, doubleQuant })
      h.ops.quantized_load(q, codes_, scales, null, null, 0)
      h.ops.dequantize(out, q)
    }
    return [out, load] as const
  }
  await h.rejects(t, ...attempt(true, absmax), /quantized_load.*nested_absmax/)
  await h.rejects(t, ...attempt(false, absmax), /quantized_load.*absmax/)
  await h.rejects(t, ...attempt(false, h.zeros([3])), /quantized_load.*absmax/)
  await h.rejects(t, ...attempt(false, h.zeros([2]), h.zeros([63], 'uint8')), /quantized_load.*codes/)
  await h.rejects(t, codes, () => h.ops.quantize(codes, h.zeros([64])), /quantize/)
})
