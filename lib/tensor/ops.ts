import type { OpDescription, OperandKind } from '../../types/native.js'
import type { Ops } from '../../types/ops.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { traceEveryOperation, withCallSite } from './call-site.js'
import { putDouble, putInteger, type Queue } from './queue.js'
import type { Tensor } from './tensor.js'

export type { Ops } from '../../types/ops.js'

const TENSOR = 0
const OPTIONAL = 1
const LIST = 2
const F64 = 3
const I64 = 4

const shapeOfKind = (kind: OperandKind) => {
  if (kind === 'f64') return F64
  if (kind === 'i64') return I64
  if (kind.endsWith('?')) return OPTIONAL
  return kind.endsWith('[]') ? LIST : TENSOR
}

function refuse(op: OpDescription, index: number, value: unknown, expected: string): never {
  const { name } = op.operands[index]!
  throw invalidArgument(`${op.name}: ${name} must be ${expected}, got ${value === null ? 'null' : typeof value}`)
}

function handleOf(op: OpDescription, index: number, value: unknown, queue: Queue): number {
  const tensor = value as Tensor | null | undefined
  if (typeof tensor !== 'object' || tensor === null || typeof tensor.handle !== 'number') refuse(op, index, value, 'a tensor')
  if (tensor.handle === 0) {
    throw new QuantuneError('ERR_DISPOSED', `${op.name}: ${op.operands[index]!.name} [${tensor.shape.join(', ')}] is disposed`)
  }
  if (tensor.device.queue !== queue) throw invalidArgument(`${op.name}: ${op.operands[index]!.name} is on another device`)
  return tensor.handle
}

/** One operation's function: writes its record. Arguments are checked before a word is written. */
function encoder(op: OpDescription, opcode: number, queue: Queue): (...args: unknown[]) => void {
  const kinds = Uint8Array.from(op.operands, ({ kind }) => shapeOfKind(kind))
  const fixed = kinds.reduce((words, kind) => words + (kind >= F64 ? 2 : 1), 1)
  const lists = [...kinds.keys()].filter((i) => kinds[i] === LIST)

  return (...args) => {
    if (args.length !== kinds.length) {
      const names = op.operands.map(({ name }) => name).join(', ')
      throw invalidArgument(`${op.name} takes ${kinds.length} arguments (${names}), got ${args.length}`)
    }
    let length = fixed
    for (const i of lists) {
      if (!Array.isArray(args[i])) refuse(op, i, args[i], 'an array of tensors')
      length += (args[i] as unknown[]).length
    }
    for (let i = 0; i < kinds.length; i++) check(op, i, kinds[i]!, args[i], queue)
    let at = queue.reserve(opcode, length) + 1
    const words = queue.words
    for (let i = 0; i < kinds.length; i++) {
      const value = args[i]
      switch (kinds[i]) {
        case F64:
          putDouble(words, at, value as number)
          at += 2
          break
        case I64:
          putInteger(words, at, value as number)
          at += 2
          break
        case LIST:
          words[at++] = (value as Tensor[]).length
          for (const tensor of value as Tensor[]) words[at++] = tensor.handle
          break
        default:
          words[at++] = value === null ? 0 : (value as Tensor).handle
      }
    }
    queue.commit()
  }
}

function check(op: OpDescription, index: number, kind: number, value: unknown, queue: Queue): void {
  switch (kind) {
    case F64:
      if (typeof value !== 'number') refuse(op, index, value, 'a number')
      break
    case I64:
      if (!Number.isSafeInteger(value)) refuse(op, index, value, 'an integer')
      break
    case LIST:
      for (const tensor of value as unknown[]) handleOf(op, index, tensor, queue)
      break
    case OPTIONAL:
      if (value === null) return
      handleOf(op, index, value, queue)
      break
    default:
      handleOf(op, index, value, queue)
  }
}

function traced(op: OpDescription, encode: (...args: unknown[]) => void): (...args: unknown[]) => void {
  return (...args) => withCallSite(op.name, () => encode(...args))
}

/** The typed functions of types/ops.d.ts, built from the list that the addon exports. */
export function buildOps(descriptions: readonly OpDescription[], firstOpcode: number, queue: Queue): Ops {
  const ops: Record<string, (...args: unknown[]) => void> = {}
  descriptions.forEach((op, i) => {
    const encode = encoder(op, firstOpcode + i, queue)
    ops[op.name] = traceEveryOperation ? traced(op, encode) : encode
  })
  return ops as unknown as Ops
}
