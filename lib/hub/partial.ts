/**
 * Files that are on their way, beside their place in the cache. `BLOB.incomplete` is what a download left that broke off; whoever goes
 * on with it first takes it under a name of its own, so that two processes never write to one file. Both finish then, and the last
 * rename wins: the content is the same.
 */
import { randomBytes } from 'node:crypto'
import { readdir, rename, rm, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { isProcessRunning } from '../formats/running.js'
import { isFile } from './cache.js'

const host = hostname().replace(/[^\w-]/g, '_')

/** A name that no other download uses, with what an earlier one has left there. */
export async function claimPartial(blob: string): Promise<string> {
  const own = `${blob}.${host}.${process.pid}-${randomBytes(4).toString('hex')}.incomplete`
  for (const left of [`${blob}.incomplete`, ...(await orphans(blob))]) {
    const taken = await rename(left, own).then(
      () => true,
      () => false, // not there, or another process was quicker
    )
    if (taken) break
  }
  return own
}

/** What is there of a download that broke off stays for the next one, unless a longer part lies there already. */
export async function leavePartial(own: string, blob: string): Promise<void> {
  const size = async (path: string) => (await stat(path).catch(() => null))?.size ?? -1
  const left = `${blob}.incomplete`
  const [mine, theirs] = [await size(own), await size(left)]
  if (mine > theirs && !(await isFile(blob))) await rename(own, left).catch(() => {})
  else await rm(own, { force: true })
}

/** Parts whose process died on this machine. */
async function orphans(blob: string): Promise<string[]> {
  const names = await readdir(dirname(blob)).catch(() => [])
  return names
    .filter((name) => name.startsWith(`${basename(blob)}.${host}.`) && name.endsWith('.incomplete'))
    .filter((name) => !isProcessRunning(Number(/\.(\d+)-[0-9a-f]+\.incomplete$/.exec(name)?.[1])))
    .map((name) => join(dirname(blob), name))
}
