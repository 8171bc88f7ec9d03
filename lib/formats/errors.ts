import { QuantuneError } from '../errors.js'

/** A file that says something untrue about itself; names the file and, where one is meant, the tensor. */
export function corruptFile(path: string, problem: string, details: Record<string, unknown> = {}): QuantuneError {
  const where = typeof details.tensor === 'string' ? `${path}: tensor "${details.tensor}"` : path
  return new QuantuneError('ERR_CORRUPT_FILE', `${where}: ${problem}`, { details: { path, ...details } })
}

/**
 * Wraps what the operating system said while `action` (e.g. "cannot read") was done to `path`; errors of another kind (an abort,
 * a producer's own) are returned as they are.
 */
export function ioError(action: string, path: string, cause: unknown): unknown {
  const { code, syscall } = cause as NodeJS.ErrnoException
  if (cause instanceof QuantuneError || typeof syscall !== 'string') return cause
  const message = `${action} ${path}: ${explanations[code ?? ''] ?? code}`
  return new QuantuneError('ERR_IO', message, { details: { path, systemCode: code }, cause })
}

export function missingFile(path: string, hint = ''): QuantuneError {
  return new QuantuneError('ERR_IO', `cannot read ${path}: no such file${hint}`, { details: { path, systemCode: 'ENOENT' } })
}

const explanations: Record<string, string> = {
  ENOENT: 'no such file or folder',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'the file system is read-only',
  ENOSPC: 'the disk is full',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'the file would become larger than the system allows',
  EEXIST: 'a file is in the way',
  ENOTDIR: 'a part of the path is not a folder',
  EISDIR: 'it is a folder',
  EMFILE: 'too many open files',
}
