import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { QuantuneError } from '../../../lib/errors.js'
import { parseSafetensorsHeader, readSafetensorsHeader } from '../../../lib/formats/safetensors.js'
import { type SafetensorsSource, writeSafetensors } from '../../../lib/formats/safetensors-writer.js'

const folder = await mkdtemp(join(tmpdir(), 'quantune-'))
t.teardown(() => rm(folder, { recursive: true }))

const f32 = (name: string, shape: number[], data: Float32Array): SafetensorsSource => ({ name, dtype: 'F32', shape, data })
const corrupt = (message: RegExp) => ({ name: 'QuantuneError', code: 'ERR_CORRUPT_FILE', message })

function parse(header: unknown, dataBytes: number) {
  const bytes = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  return parseSafetensorsHeader('x.safetensors', bytes, 8 + bytes.length + dataBytes)
}

t.test('writes and reads', async (t) => {
  const path = join(folder, 'a', 'b.safetensors')
  const sources: SafetensorsSource[] = [
    { name: 'bytes', dtype: 'U8', shape: [3], data: new Uint8Array([1, 2, 3]) },
    { name: 'half', dtype: 'BF16', shape: [2], data: () => new Float32Array([1, -2]) },
    f32('w', [2, 1], new Float32Array([0.5, 1.5])),
    { name: 'long', dtype: 'I64', shape: [1], data: async () => new BigInt64Array([7n]) },
    { name: 'empty', dtype: 'F32', shape: [0, 4], data: new Float32Array(0) },
  ]
  await writeSafetensors(path, sources, { format: 'pt' })
  const header = await readSafetensorsHeader(path)
  t.same([...header.entries.keys()], ['long', 'empty', 'w', 'half', 'bytes'], 'wide types first')
  t.same(header.metadata, { format: 'pt' })
  const bytes = await readFile(path)
  const w = header.entries.get('w')!
  t.equal(w.byteOffset % 4, 0)
  t.equal(bytes.readFloatLE(w.byteOffset + 4), 1.5)
  t.equal(bytes.readUInt16LE(header.entries.get('half')!.byteOffset), 0x3f80)
  t.same(await readdir(join(folder, 'a')), ['b.safetensors'], 'no temporary file stays')
})

t.test('a failing producer leaves the old file', async (t) => {
  const path = join(folder, 'kept.safetensors')
  await writeSafetensors(path, [f32('w', [1], new Float32Array([1]))])
  const before = await readFile(path)
  const failing = { ...f32('w', [1], new Float32Array(1)), data: () => Promise.reject(new Error('producer')) }
  await t.rejects(writeSafetensors(path, [failing]), { message: 'producer' })
  await t.rejects(writeSafetensors(path, [f32('w', [2], new Float32Array(1))]), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /"w"/,
  })
  await t.rejects(writeSafetensors(path, [{ ...failing, dtype: 'I32', data: new Float32Array(1) }]), {
    code: 'ERR_INVALID_ARGUMENT',
  })
  const twice = [f32('w', [1], new Float32Array(1)), f32('w', [1], new Float32Array(1))]
  await t.rejects(writeSafetensors(path, twice), { code: 'ERR_INVALID_ARGUMENT' })
  await t.rejects(
    writeSafetensors(path, [f32('w', [1], new Float32Array(1))], {}, { signal: AbortSignal.abort(new Error('stop')) }),
    /stop/,
  )
  t.same(await readFile(path), before)
  t.equal((await readdir(folder)).filter((name) => name.endsWith('.tmp')).length, 0)
})

t.test('an unwritable place is ERR_IO', { skip: process.platform !== 'linux' }, async (t) => {
  const file = [f32('w', [1], new Float32Array(1))]
  await t.rejects(writeSafetensors(join(folder, 'kept.safetensors', 'x'), file), {
    code: 'ERR_IO',
    message: /not a folder|in the way/,
  })
  if (process.getuid?.() === 0) return
  await chmod(folder, 0o500)
  await t.rejects(writeSafetensors(join(folder, 'x'), file), { code: 'ERR_IO', message: /permission/ })
  await chmod(folder, 0o700)
})

t.test('headers that lie', async (t) => {
  const w = (dtype: unknown, shape: unknown, data_offsets: unknown) => ({ w: { dtype, shape, data_offsets } })
  const cases: [string, unknown, number, RegExp][] = [
    ['past the end', w('F32', [4], [0, 16]), 8, /"w".*truncated/],
    ['bytes at the end', w('F32', [1], [0, 4]), 8, /4 bytes at its end/],
    ['gap', { ...w('F32', [1], [4, 8]) }, 8, /"w": 4 bytes before it/],
    [
      'overlap',
      { ...w('F32', [2], [0, 8]), v: { dtype: 'F32', shape: [1], data_offsets: [4, 8] } },
      8,
      /"v": overlaps tensor "w"/,
    ],
    ['same bytes twice', { ...w('F32', [1], [0, 4]), v: { dtype: 'F32', shape: [1], data_offsets: [0, 4] } }, 4, /overlaps/],
    ['shape product', w('F32', [3], [0, 8]), 8, /takes 12 bytes/],
    ['overflowing shape', w('F32', [2 ** 40, 2 ** 40], [0, 8]), 8, /no possible number/],
    ['dtype', w('F33', [1], [0, 4]), 4, /unknown dtype "F33"/],
    ['dtype of the prototype', w('toString', [1], [0, 4]), 4, /unknown dtype/],
    ['no dtype', w(undefined, [1], [0, 4]), 4, /dtype/],
    ['negative size', w('F32', [-1], [0, 4]), 4, /shape/],
    ['fractional size', w('F32', [0.5], [0, 2]), 2, /shape/],
    ['reversed offsets', w('F32', [1], [4, 0]), 4, /range/],
    ['one offset', w('F32', [1], [0]), 4, /range/],
    ['huge offset', w('F32', [1], [0, 1e300]), 4, /range/],
    ['unknown field', { w: { dtype: 'F32', shape: [1], data_offsets: [0, 4], url: 'x' } }, 4, /unknown field "url"/],
    ['entry is no object', { w: [1] }, 0, /not an object/],
    ['metadata', { __metadata__: { a: 1 } }, 0, /__metadata__/],
    ['array', '[]', 0, /not a JSON object/],
    ['no JSON', '{"w":', 0, /not valid JSON/],
    [
      'twice',
      '{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0077":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
      0,
      /twice/,
    ],
    ['field twice', '{"w":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}', 0, /twice/],
  ]
  for (const [name, header, dataBytes, message] of cases) t.throws(() => parse(header, dataBytes), corrupt(message), name)
  const proto = parse('{"__proto__":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0)
  t.same([...proto.entries.keys()], ['__proto__'], 'a name like any other')
})

t.test('files that are no safetensors files', async (t) => {
  const path = join(folder, 'bad.safetensors')
  const check = async (bytes: Uint8Array, message: RegExp) => {
    await writeFile(path, bytes)
    await t.rejects(readSafetensorsHeader(path), corrupt(message))
  }
  await check(new Uint8Array(0), /too few/)
  await check(new Uint8Array([255, 255, 255, 255, 255, 255, 255, 255, 123]), /claims 18446744073709551615/)
  await check(new Uint8Array([100, 0, 0, 0, 0, 0, 0, 0, 123, 125]), /claims 100 bytes/)
  await check(Buffer.from('PK\x03\x04aaaaaaaaaaaaaaa'), /pickle/)
  await check(Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'), /Git LFS pointer/)
  await check(Buffer.from([0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9]), /pickle/)
  await t.rejects(readSafetensorsHeader(join(folder, 'none')), { code: 'ERR_IO', message: /none: no such file/ })
  await t.rejects(readSafetensorsHeader(folder), { code: 'ERR_IO' })
})

t.test('property: any valid file survives, any damage is ERR_CORRUPT_FILE or harmless', async (t) => {
  const name = fc.string({ minLength: 1, unit: 'grapheme' }).filter((s) => s !== '__metadata__')
  const shape = fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 })
  const dtype = fc.constantFrom('F32', 'U8', 'BF16', 'F64' as const)
  const tensors = fc.uniqueArray(fc.record({ name, shape, dtype }), { selector: (x) => x.name, maxLength: 5 })
  const path = join(folder, 'p.safetensors')
  await fc.assert(
    fc.asyncProperty(tensors, fc.nat(), fc.integer({ min: 0, max: 255 }), fc.nat(), async (list, at, byte, cut) => {
      const arrays = { F32: Float32Array, U8: Uint8Array, BF16: Uint16Array, F64: Float64Array }
      await writeSafetensors(
        path,
        list.map((x) => ({ ...x, data: new arrays[x.dtype](x.shape.reduce((a, b) => a * b, 1)) })),
      )
      const { entries } = await readSafetensorsHeader(path)
      t.same(new Map([...entries].map(([k, e]) => [k, e.shape])), new Map(list.map((x) => [x.name, x.shape])))
      const bytes = await readFile(path)
      const damaged = Uint8Array.from(bytes)
      damaged[at % bytes.length] = byte
      for (const variant of [damaged, bytes.subarray(0, cut % bytes.length)]) {
        await writeFile(path, variant)
        try {
          const header = await readSafetensorsHeader(path)
          for (const e of header.entries.values())
            if (e.byteOffset + e.byteLength > variant.length) throw new Error('past the end')
        } catch (error) {
          if (!(error instanceof QuantuneError) || error.code !== 'ERR_CORRUPT_FILE') throw error
        }
      }
    }),
    { numRuns: 150 },
  )
})
