import { readFileSync } from 'node:fs'
import t from 'tap'
import { loadNative, refuseIfStale } from '../../lib/native.js'
import { dtypes, purposes } from '../../lib/tensor/dtype.js'
import { Device } from '../../lib/tensor/index.js'

const root = new URL('../../', import.meta.url)
const addon = loadNative()
const typesOf = (file: string) => readFileSync(new URL(`types/${file}`, root), 'utf8')

/** The members of an interface of a declaration file, in order. */
function membersOf(source: string, name: string): string[] {
  const body = new RegExp(`export interface ${name} \\{\\n(.*?)\\n\\}`, 's').exec(source)![1]!
  return [...body.matchAll(/^ {2}(\w+)[(:]/gm)].map(([, member]) => member!)
}

t.test('types/native.d.ts says what the addon exports', async (t) => {
  const source = typesOf('native.d.ts')
  t.strictSame(Object.keys(addon).sort(), membersOf(source, 'NativeAddon').sort())
  t.strictSame(Object.keys(addon.protocol).sort(), membersOf(source, 'Protocol').sort())
  const device = await Device.open('cpu')
  t.strictSame(Object.keys(device.queue.native).sort(), membersOf(source, 'NativeDevice').sort())
  t.strictSame(addon.dtypes, [...dtypes])
  t.strictSame(addon.purposes, [...purposes])
})

t.test('types/ops.d.ts says which operations there are', (t) => {
  const types = { f64: 'number', i64: 'number', in: 'Tensor', out: 'Tensor', inout: 'Tensor' }
  const typeOf = (kind: string) => {
    if (kind.endsWith('?')) return 'Tensor | null'
    return kind.endsWith('[]') ? 'readonly Tensor[]' : types[kind as keyof typeof types]
  }
  const expected = addon.ops.map(
    ({ name, operands }) =>
      `${name}(${operands.map((operand) => `${operand.name}: ${typeOf(operand.kind)}`).join(', ')}): void`,
  )
  const body = /interface Ops \{(.*)\n\}/s.exec(typesOf('ops.d.ts'))![1]!.replace(/^ *\/\/.*$/gm, '')
  const actual = [...body.matchAll(/(\w+)\(([^)]*)\): void/g)].map(([, name, parameters]) => {
    const flat = parameters!.replace(/\s+/g, ' ').replace(/, $/, '').trim()
    return `${name}(${flat}): void`
  })
  t.strictSame(actual, expected)
  t.end()
})

t.test('a stale binary is refused with the command that rebuilds it', (t) => {
  const folder = new URL('.', root).pathname
  const refused = { code: 'ERR_NO_BINARY', message: /stale: .*npm run build:native/s }
  refuseIfStale(addon, folder)
  t.throws(() => refuseIfStale({ ...addon, abiVersion: 99 }, folder), { ...refused, message: /ABI version 99, needed is 1/ })
  t.throws(() => refuseIfStale({ ...addon, ops: addon.ops.slice(1) }, folder), refused)
  t.throws(() => refuseIfStale({ ...addon, ops: addon.ops.slice(0, -1) }, folder), refused)
  const [fill, ...rest] = addon.ops
  const renamed = { ...fill!, operands: [{ ...fill!.operands[0]!, kind: 'in' as const }, ...fill!.operands.slice(1)] }
  t.throws(() => refuseIfStale({ ...addon, ops: [renamed, ...rest] }, folder), {
    message: /fill in out, f64 value instead of fill out out, f64 value/,
  })
  t.end()
})
