import { invalidArgument } from '../errors.js'
import { writeAtomically, writeFully } from './atomic-file.js'
import { bytesOf, type ElementArray } from './dtypes.js'
import { byteLengthOf, type SafetensorsDtype } from './safetensors.js'

export interface SafetensorsSource {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  /**
   * The elements, or a function that produces them when their turn comes, so that one tensor at a time is held. Float32Array is
   * rounded where `dtype` is BF16 or F16.
   */
  readonly data: ElementArray | (() => ElementArray | Promise<ElementArray>)
}

/**
 * Writes a safetensors file: temporary file, fsync, rename. Tensors lie in the reference implementation's order (wider types
 * first, then by name), so that each is aligned to its element size.
 * @throws ERR_INVALID_ARGUMENT when names repeat or data does not fit its shape, ERR_IO when the disk refuses; `path` is then as before.
 */
export async function writeSafetensors(
  path: string,
  sources: Iterable<SafetensorsSource>,
  metadata: Readonly<Record<string, string>> = {},
  { signal }: { signal?: AbortSignal } = {},
): Promise<void> {
  const sorted = [...sources].sort(byAlignmentThenName)
  const header = encodeHeader(sorted, metadata)
  await writeAtomically(path, async (file) => {
    await writeFully(file, header)
    for (const { name, dtype, shape, data } of sorted) {
      signal?.throwIfAborted()
      const bytes = bytesOf(name, dtype, typeof data === 'function' ? await data() : data)
      if (bytes.length !== byteLengthOf(dtype, shape)) {
        throw invalidArgument(`tensor "${name}": ${bytes.length} bytes do not fill ${dtype} [${shape.join(', ')}]`)
      }
      await writeFully(file, bytes)
    }
  })
}

function byAlignmentThenName(a: SafetensorsSource, b: SafetensorsSource): number {
  return byteLengthOf(b.dtype, [1]) - byteLengthOf(a.dtype, [1]) || (a.name < b.name ? -1 : 1)
}

function encodeHeader(sorted: readonly SafetensorsSource[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const fields = Object.keys(metadata).length > 0 ? [`"__metadata__":${JSON.stringify(metadata)}`] : []
  const names = new Set(['__metadata__'])
  let offset = 0
  for (const { name, dtype, shape } of sorted) {
    if (names.has(name)) throw invalidArgument(`two tensors of a safetensors file are named "${name}"`)
    names.add(name)
    const end = offset + byteLengthOf(dtype, shape)
    fields.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, end] })}`)
    offset = end
  }
  const json = Buffer.from(`{${fields.join(',')}}`)
  const length = Math.ceil(json.length / 8) * 8
  const header = Buffer.alloc(8 + length, ' ')
  header.writeBigUInt64LE(BigInt(length), 0)
  json.copy(header, 8)
  return header
}
