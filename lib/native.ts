import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { NativeAddon } from '../types/native.js'
import { QuantuneError } from './errors.js'

const ABI_VERSION = 1
const REBUILD = 'npm run build:native'

let loaded: { addon: NativeAddon; folder: string; path: string } | undefined

/** The package's own folder, from lib/ as from dist/lib/. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'binding.gyp')) && dirname(folder) !== folder) folder = dirname(folder)
  return folder
}

function noBinary(what: string, cause: unknown, root: string): QuantuneError {
  const message = [
    what,
    cause instanceof Error ? `  reason: ${cause.message.split('\n')[0]}` : '',
    `  platform: ${process.platform}-${process.arch}, Node ${process.versions.node}, ABI ${process.versions.modules}`,
    'Possible solutions:',
    `- build it: cd ${root} && ${REBUILD} (needs Python 3, make and a C++17 compiler)`,
    '- if node_modules was copied from another machine, install again on this one',
    '- if npm was told to skip install scripts, run: npm rebuild quantune',
  ]
  return new QuantuneError('ERR_NO_BINARY', message.filter(Boolean).join('\n'), { cause, details: { root, command: REBUILD } })
}

/** The operations that csrc/core/ops.def lists, each as "name kind operand, …"; null where the sources are not shipped. */
function expectedOps(root: string): string[] | null {
  const path = join(root, 'csrc', 'core', 'ops.def')
  if (!existsSync(path)) return null
  const kinds: Record<string, string> = { F64: 'f64', I64: 'i64' }
  const kindOf = (macro: string) => kinds[macro] ?? macro.toLowerCase().replace('_opt', '?').replace('_list', '[]')
  const ops: string[] = []
  for (const [, name, operands] of readFileSync(path, 'utf8').matchAll(/^OP\((\w+)\) (.*?) END/gm)) {
    const signature = [...operands!.matchAll(/(\w+)\((\w+)\)/g)].map(([, macro, operand]) => `${kindOf(macro!)} ${operand}`)
    ops.push(`${name} ${signature.join(', ')}`)
  }
  return ops
}

/** Throws when the addon was built from other sources than these. */
export function refuseIfStale(addon: NativeAddon, root: string): void {
  if (addon.abiVersion !== ABI_VERSION) {
    throw noBinary(`The native addon is stale: it has ABI version ${addon.abiVersion}, needed is ${ABI_VERSION}.`, null, root)
  }
  const expected = expectedOps(root)
  if (!expected) return
  const actual = addon.ops.map(({ name, operands }) => `${name} ${operands.map((o) => `${o.kind} ${o.name}`).join(', ')}`)
  const at = expected.findIndex((op, i) => op !== actual[i])
  if (at >= 0 || actual.length !== expected.length) {
    const difference = at >= 0 ? `${actual[at] ?? 'nothing'} instead of ${expected[at]}` : `${actual.length} operations`
    throw noBinary(`The native addon is stale: it was built from another list of operations (${difference}).`, null, root)
  }
}

/**
 * The addon: the prebuilt one for this platform, or the one that node-gyp built; `QUANTUNE_BINARY` names another one.
 * @throws QuantuneError ERR_NO_BINARY with what went wrong and what to do about it
 */
export function loadNative(): NativeAddon {
  if (loaded) return loaded.addon
  const root = packageRoot()
  const require = createRequire(import.meta.url)
  let addon: NativeAddon
  let path: string
  try {
    const build = require('node-gyp-build') as ((folder: string) => NativeAddon) & { resolve(folder: string): string }
    path = process.env.QUANTUNE_BINARY ?? build.resolve(root)
    addon = require(path) as NativeAddon
  } catch (error) {
    throw noBinary('The native addon of quantune could not be loaded.', error, root)
  }
  refuseIfStale(addon, root)
  loaded = { addon, folder: dirname(path), path }
  return addon
}

/** The file that {@link loadNative} loaded. */
export function nativePath(): string {
  loadNative()
  return loaded!.path
}

/** The file name of a backend's plugin. */
export function pluginFile(name: string): string {
  return process.platform === 'win32' ? `quantune-${name}.dll` : `quantune-${name}.so`
}

/**
 * Where a backend's plugin lies: beside the addon (prebuilt), or in build-cuda/ (node-gyp empties build/); `QUANTUNE_PLUGINS` names
 * another folder.
 */
export function pluginFolder(name: string): string {
  loadNative()
  if (process.env.QUANTUNE_PLUGINS) return process.env.QUANTUNE_PLUGINS
  const beside = loaded!.folder
  const built = join(packageRoot(), `build-${name}`)
  const library = pluginFile(name)
  return !existsSync(join(beside, library)) && existsSync(join(built, library)) ? built : beside
}
