/** Folders that appear whole: written beside their place, synced to the disk, renamed. */
import { randomBytes } from 'node:crypto'
import { chmod, mkdir, open, readdir, realpath, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { QuantuneError } from '../errors.js'
import { syncFolder } from './atomic-file.js'
import { ioError } from './errors.js'
import { isProcessRunning } from './running.js'

/** A name beside `path` for a folder that is being written (new), or that is being replaced (old). */
export function hiddenName(path: string, state: 'new' | 'old'): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}-${randomBytes(4).toString('hex')}.${state}`)
}

/**
 * Which entries of a folder that is replaced belong to what was written there before, and go with it. Others move over to the new
 * folder, unless it has an entry of that name.
 */
export type Replaces = (name: string) => boolean

const all: Replaces = () => true

/**
 * Writes a folder so that `path` holds either the old one or the whole new one. When `write` fails, `path` stays untouched. A process
 * that dies between the two renames leaves nothing at `path`, and both folders beside it: `recoverFolder` puts the old one back.
 *
 * Where the folder cannot be renamed (its parent is not writable, it is a mount point) it is written inside it and moved file by file.
 * @throws ERR_IO (full disk, unwritable folder); what `write` throws
 */
export async function writeFolder(
  path: string,
  write: (folder: string) => Promise<void>,
  replaces: Replaces = all,
): Promise<void> {
  // What a link points to is replaced, not the link.
  const target = await realpath(path).catch(() => resolve(path))
  const former = await stat(target).catch(() => null)
  const fresh = hiddenName(target, 'new')
  try {
    if (former && !former.isDirectory()) throw Object.assign(new Error('a file'), { code: 'EEXIST', syscall: 'mkdir' })
    await mkdir(dirname(target), { recursive: true })
    await recoverFolder(target, replaces)
    const isMovable = await makeBeside(fresh, target)
    await write(isMovable ? fresh : await inside(target))
    if (isMovable) await putInPlace(fresh, target, replaces, former?.mode)
    else await moveInto(target, replaces)
  } catch (error) {
    await rm(fresh, { recursive: true, force: true }).catch(() => {})
    await rm(join(target, STAGING), { recursive: true, force: true }).catch(() => {})
    throw ioError('cannot write', path, named(error, fresh, path))
  }
}

/** The caller knows nothing of the folder beside its own. */
function named(error: unknown, hidden: string, path: string): unknown {
  if (!(error instanceof QuantuneError) || error.code !== 'ERR_IO' || !error.message.includes(hidden)) return error
  const details = { ...error.details, path: String(error.details.path).replace(hidden, path) }
  return new QuantuneError('ERR_IO', error.message.replaceAll(hidden, path), { details, cause: error.cause })
}

const unwritable: ReadonlySet<unknown> = new Set(['EACCES', 'EPERM', 'EROFS'])

/** Whether the folder can be made beside a target that can be renamed. */
async function makeBeside(fresh: string, target: string): Promise<boolean> {
  const [own, parent] = [await stat(target).catch(() => null), await stat(dirname(target))]
  if (own && own.dev !== parent.dev) return false
  try {
    await mkdir(fresh)
    return true
  } catch (error) {
    if (own && unwritable.has((error as NodeJS.ErrnoException).code)) return false
    throw error
  }
}

async function putInPlace(fresh: string, target: string, replaces: Replaces, mode: number | undefined): Promise<void> {
  const replaced = hiddenName(target, 'old')
  if (mode !== undefined) await chmod(fresh, mode & 0o7777)
  await syncTree(fresh)
  await renameIfPresent(target, replaced)
  await rename(fresh, target).catch(async (error) => {
    await renameIfPresent(replaced, target)
    throw error
  })
  await syncFolder(dirname(target))
  await discard(replaced, target, replaces)
}

const STAGING = '.saving'

async function inside(target: string): Promise<string> {
  const staging = join(target, STAGING)
  await rm(staging, { recursive: true, force: true })
  await mkdir(staging)
  return staging
}

async function moveInto(target: string, replaces: Replaces): Promise<void> {
  const staging = join(target, STAGING)
  await syncTree(staging)
  const names = await readdir(staging)
  for (const name of names) await rename(join(staging, name), join(target, name))
  for (const name of await readdir(target)) {
    if (name !== STAGING && !names.includes(name) && replaces(name)) await rm(join(target, name), { recursive: true })
  }
  await rm(staging, { recursive: true })
  await syncFolder(target)
}

/** Tidies up after processes that died while they wrote `path`: what was being written goes, what was being replaced returns. */
export async function recoverFolder(path: string, replaces: Replaces = all): Promise<void> {
  const folder = dirname(path)
  const names = await readdir(folder).catch(() => [])
  for (const name of names) {
    const match = /^\.(.+)\.(\d+)-[0-9a-f]{8}\.(new|old)$/.exec(name)
    if (match?.[1] !== basename(path)) continue
    const hidden = join(folder, name)
    if (match[3] === 'old' && (await stat(path).catch(() => null)) === null) await rename(hidden, path)
    else if (isProcessRunning(Number(match[2]))) continue
    else if (match[3] === 'old') await discard(hidden, path, replaces)
    else await rm(hidden, { recursive: true, force: true })
  }
}

/** Deletes what was replaced, but for entries of others. */
async function discard(replaced: string, target: string, replaces: Replaces): Promise<void> {
  const there = new Set(await readdir(target))
  for (const name of await readdir(replaced).catch(() => [])) {
    if (!replaces(name) && !there.has(name)) await rename(join(replaced, name), join(target, name))
  }
  await rm(replaced, { recursive: true, force: true })
}

async function renameIfPresent(from: string, to: string): Promise<void> {
  await rename(from, to).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
}

/** Forces a folder's files to the disk, so that the rename which follows can't overtake them. */
async function syncTree(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await syncTree(path)
    if (!entry.isFile()) continue
    const file = await open(path, 'r+')
    await file.sync().finally(() => file.close())
  }
  await syncFolder(folder)
}
