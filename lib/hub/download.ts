import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, mkdir, open, rename, rm, stat, symlink } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { invalidArgument, QuantuneError } from '../errors.js'
import { writeFully, writeTextAtomically } from '../formats/atomic-file.js'
import { corruptFile, ioError } from '../formats/errors.js'
import { CachedRepository, hubEnvironment, isCommit, isFile, linksTo } from './cache.js'
import { type HubConnection, networkError, request } from './http.js'
import { claimPartial, leavePartial } from './partial.js'

export interface DownloadOptions {
  revision?: string | undefined
  token?: string | undefined
  cacheDir?: string | undefined
  localFilesOnly?: boolean | undefined
  signal?: AbortSignal | undefined
  onProgress?: ((progress: { stage: 'download'; file: string; loadedBytes: number; totalBytes: number }) => void) | undefined
}

interface Download {
  id: string
  commit: string
  connection: HubConnection
  repository: CachedRepository
  onProgress: DownloadOptions['onProgress']
}

/**
 * Downloads what a model needs (config, tokenizer, safetensors) into the standard cache, or finds it there; a partial file is
 * resumed. With `localFilesOnly` or HF_HUB_OFFLINE the network is never asked.
 *
 * @param id `organisation/name`, or an old name without an organisation
 * @returns the snapshot's folder
 * @throws ERR_HUB_NOT_FOUND, ERR_HUB_UNAUTHORIZED, ERR_IO, `signal.reason` when aborted
 */
export async function downloadModel(id: string, options: DownloadOptions = {}): Promise<string> {
  if (!/^[\w.-]+(\/[\w.-]+)?$/.test(id) || id.includes('..')) {
    throw invalidArgument(`"${id}" is neither a folder nor a Hub id (organisation/name)`)
  }
  const environment = await hubEnvironment()
  const repository = new CachedRepository(options.cacheDir ?? environment.cacheDir, id)
  const revision = options.revision ?? 'main'
  if (!/^[\w./-]+$/.test(revision) || revision.includes('..')) throw invalidArgument(`"${revision}" is no revision`)
  if (options.localFilesOnly ?? environment.offline) return findLocal(repository, id, revision)
  const { signal, onProgress } = options
  const connection = { endpoint: environment.endpoint, token: options.token ?? environment.token, signal }
  const { commit, files } = await listFiles(connection, id, revision)
  const download: Download = { id, commit, connection, repository, onProgress }
  const wanted = neededFiles(files)
  if (!wanted.includes('config.json'))
    throw new QuantuneError('ERR_HUB_NOT_FOUND', `${id} has no config.json: it is no transformers model`)
  for (const file of wanted) await fetchFile(download, file)
  if (!isCommit(revision)) await writeTextAtomically(repository.ref(revision), commit)
  return repository.snapshot(commit)
}

async function findLocal(repository: CachedRepository, id: string, revision: string): Promise<string> {
  const commit = await repository.commitOf(revision)
  if (commit !== null && (await isFile(join(repository.snapshot(commit), 'config.json')))) return repository.snapshot(commit)
  const message = `${id} (${revision}) is not in the cache ${repository.path}, and the network must not be asked (localFilesOnly, HF_HUB_OFFLINE)`
  throw new QuantuneError('ERR_HUB_NOT_FOUND', message, { details: { id, revision, cache: repository.path } })
}

async function listFiles(
  connection: HubConnection,
  id: string,
  revision: string,
): Promise<{ commit: string; files: string[] }> {
  const url = `${connection.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}`
  const response = await request(connection, url, { what: `${id} (${revision})` })
  const body = (await response.json().catch(() => null)) as { sha?: unknown; siblings?: unknown } | null
  const names = Array.isArray(body?.siblings)
    ? body.siblings.map((sibling: { rfilename?: unknown }) => sibling?.rfilename)
    : null
  if (typeof body?.sha !== 'string' || !isCommit(body.sha) || names === null)
    throw networkError(url, new Error('the answer is no model description'))
  // Only files at the top are wanted; a name with "/" or ".." never becomes a path.
  return { commit: body.sha, files: names.filter((name): name is string => typeof name === 'string' && /^[\w.-]+$/.test(name)) }
}

const smallFiles = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'adapter_config.json',
])

/** The small files first; of weights one set in safetensors, never pickles, ONNX or other copies. */
function neededFiles(files: readonly string[]): string[] {
  const small = files.filter((name) => smallFiles.has(name))
  if (files.includes('model.safetensors')) return [...small, 'model.safetensors']
  const shards = files.filter((name) => /^model-\d+-of-\d+\.safetensors$/.test(name))
  if (shards.length > 0 && files.includes('model.safetensors.index.json'))
    return [...small, 'model.safetensors.index.json', ...shards.sort()]
  const pickle = files.find((name) => /\.(bin|pt|pth)$/.test(name))
  if (pickle === undefined) return small
  throw corruptFile(pickle, 'this model has Python pickles only, which can run any code; quantune reads safetensors')
}

async function fetchFile(download: Download, file: string): Promise<void> {
  const { repository, commit, connection, id } = download
  const link = join(repository.snapshot(commit), file)
  if (await isFile(link)) return
  const url = `${connection.endpoint}/${id}/resolve/${commit}/${file}`
  const head = await request(connection, url, {
    method: 'HEAD',
    what: `${id}/${file}`,
    headers: { 'accept-encoding': 'identity' },
  })
  const etag = (head.headers.get('x-linked-etag') ?? head.headers.get('etag') ?? '').replace(/^W\//, '').replaceAll('"', '')
  const length = Number(head.headers.get('x-linked-size') ?? head.headers.get('content-length') ?? Number.NaN)
  if (!/^[\w.-]+$/.test(etag) || !Number.isSafeInteger(length))
    throw networkError(url, new Error('the answer names no etag or size'))
  const blob = repository.blob(etag)
  await oneAtATime(blob, async () => {
    if (!(await isFile(blob))) await fetchBlob(download, { file, url, blob, length, etag })
  })
  await linkSnapshot(link, blob)
}

const inProgress = new Map<string, Promise<void>>()

/** Two calls that want the same file must not both append to it; the second finds what the first has left. */
async function oneAtATime(key: string, work: () => Promise<void>): Promise<void> {
  while (inProgress.has(key)) await inProgress.get(key)!.catch(() => {})
  const running = work()
  inProgress.set(key, running)
  try {
    await running
  } finally {
    inProgress.delete(key)
  }
}

interface Blob {
  file: string
  etag: string
  url: string
  blob: string
  length: number
}

async function fetchBlob({ connection, onProgress, id }: Download, { file, url, blob, length, etag }: Blob): Promise<void> {
  await mkdir(dirname(blob), { recursive: true }).catch((error) => {
    throw ioError('cannot write', blob, error)
  })
  const partial = await claimPartial(blob)
  try {
    let have = (await stat(partial).catch(() => null))?.size ?? 0
    if (have > length) {
      await rm(partial)
      have = 0
    }
    if (have < length) {
      const headers: Record<string, string> = { 'accept-encoding': 'identity' }
      if (have > 0) headers.range = `bytes=${have}-`
      const response = await request(connection, url, { what: `${id}/${file}`, headers })
      // A server that does not know ranges sends the whole file.
      if (response.status !== 206) have = 0
      const report = (loadedBytes: number) => onProgress?.({ stage: 'download', file, loadedBytes, totalBytes: length })
      have = await receive(response, partial, have, report, connection)
    }
    const { size } = await stat(partial).catch(() => ({ size: 0 }))
    if (size !== length) {
      if (size > length) await rm(partial)
      throw networkError(url, new Error(`${size} of ${length} bytes arrived; call again to go on`))
    }
    if (isSha256(etag) && (await sha256Of(partial)) !== etag) {
      await rm(partial)
      throw corruptFile(partial, `what arrived from ${url} is not what the server promised; it was deleted, call again`)
    }
    await rename(partial, blob).catch(async (error) => {
      // Where a file that is in use cannot be replaced: another process was quicker.
      if (!(await isFile(blob))) throw error
    })
  } catch (error) {
    throw ioError('cannot write', blob, error)
  } finally {
    await leavePartial(partial, blob)
  }
}

/** Large files are named by their SHA-256, small ones by git's hash. */
const isSha256 = (etag: string) => /^[0-9a-f]{64}$/.test(etag)

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk)
  return hash.digest('hex')
}

/** Appends a response to the partial file; what has arrived stays there when the connection breaks or the call is aborted. */
async function receive(
  response: Response,
  partial: string,
  start: number,
  report: (loadedBytes: number) => void,
  { signal }: HubConnection,
): Promise<number> {
  const file = await open(partial, start > 0 ? 'a' : 'w')
  let loaded = start
  try {
    report(loaded)
    for await (const chunk of response.body ?? []) {
      await writeFully(file, chunk)
      loaded += chunk.length
      report(loaded)
    }
    await file.sync()
    return loaded
  } catch (error) {
    signal?.throwIfAborted()
    const { syscall } = error as NodeJS.ErrnoException
    throw syscall === 'write' || syscall === 'fsync' ? error : networkError(response.url || partial, error)
  } finally {
    await file.close()
  }
}

/** A relative link, as huggingface_hub makes it; a copy where the system has no links. */
async function linkSnapshot(link: string, blob: string): Promise<void> {
  const target = relative(dirname(link), blob)
  try {
    await mkdir(dirname(link), { recursive: true })
    if (await linksTo(link, target)) return
    await rm(link, { force: true })
    await symlink(target, link).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return // another process was quicker
      if (error.code !== 'EPERM' && error.code !== 'ENOSYS') throw error
      await copyFile(blob, link)
    })
  } catch (error) {
    throw ioError('cannot write', link, error)
  }
}
