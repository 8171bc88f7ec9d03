/** The Hub's cache as huggingface_hub lays it out, so that both find each other's files. */
import { readFile, readlink, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'

/** Settings from the environment, read at each call; empty variables count as unset. */
export interface HubEnvironment {
  endpoint: string
  cacheDir: string
  token: string | null
  offline: boolean
}

export async function hubEnvironment(): Promise<HubEnvironment> {
  const { HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, XDG_CACHE_HOME } = process.env
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface')
  const tokenFile = await readFile(HF_TOKEN_PATH || join(home, 'token'), 'utf8').catch(() => '')
  return {
    endpoint: (HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, ''),
    cacheDir: HF_HUB_CACHE || join(home, 'hub'),
    token: (HF_TOKEN || tokenFile).trim() || null,
    offline: /^(1|true|yes|on)$/i.test(HF_HUB_OFFLINE ?? ''),
  }
}

/** `models--org--name` with blobs (by etag), snapshots (links by commit) and refs (commits by branch or tag). */
export class CachedRepository {
  readonly path: string

  constructor(cacheDir: string, id: string) {
    this.path = join(cacheDir, `models--${id.replaceAll('/', '--')}`)
  }

  blob(etag: string): string {
    return join(this.path, 'blobs', etag)
  }

  snapshot(commit: string): string {
    return join(this.path, 'snapshots', commit)
  }

  ref(revision: string): string {
    return join(this.path, 'refs', revision)
  }

  /** The commit that a revision stood for when it was last asked for; a commit stands for itself. */
  async commitOf(revision: string): Promise<string | null> {
    if (isCommit(revision)) return (await isFolder(this.snapshot(revision))) ? revision : null
    const commit = (await readFile(this.ref(revision), 'utf8').catch(() => '')).trim()
    return isCommit(commit) ? commit : null
  }
}

export function isCommit(revision: string): boolean {
  return /^[0-9a-f]{40}$/.test(revision)
}

export async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch(() => null))?.isDirectory() ?? false
}

export async function isFile(path: string): Promise<boolean> {
  return (await stat(path).catch(() => null))?.isFile() ?? false
}

export async function linksTo(path: string, target: string): Promise<boolean> {
  return (await readlink(path).catch(() => null)) === target
}
