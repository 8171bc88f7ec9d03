import { randomBytes } from 'node:crypto'
import { type FileHandle, mkdir, open, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ioError } from './errors.js'

/**
 * Writes a file so that at every moment `path` holds either the old or the whole new content: a temporary file beside it,
 * fsync, rename. When `write` fails, the temporary file is removed and `path` stays untouched. Creates the folder.
 * @throws ERR_IO naming the path (full disk, unwritable folder).
 */
export async function writeAtomically(path: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
  const temporary = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`
  let file: FileHandle | undefined
  try {
    await mkdir(dirname(path), { recursive: true })
    file = await open(temporary, 'wx')
    await write(file)
    await file.sync()
    await file.close()
    file = undefined
    await rename(temporary, path)
    await syncFolder(dirname(path))
  } catch (error) {
    await file?.close().catch(() => {})
    await unlink(temporary).catch(() => {})
    throw ioError('cannot write', path, error)
  }
}

export function writeTextAtomically(path: string, text: string): Promise<void> {
  return writeAtomically(path, (file) => file.writeFile(text))
}

/** JSON as transformers and PEFT write it: two spaces, a final newline. */
export function writeJsonAtomically(path: string, value: unknown): Promise<void> {
  return writeTextAtomically(path, `${JSON.stringify(value, null, 2)}\n`)
}

/** Makes a rename durable. Windows and some network file systems cannot open folders; there the rename itself has to do. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r').catch(() => null)
  if (folder === null) return
  await folder.sync().catch(() => {})
  await folder.close()
}

/** Writes all of `bytes`; a single call to the system may write less, and Node refuses more than 2 GiB at once. */
export async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let offset = 0; offset < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, offset, Math.min(bytes.length - offset, 1 << 28))
    offset += bytesWritten
  }
}
