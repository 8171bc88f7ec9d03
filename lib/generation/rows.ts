import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'

/** The given rows of each tensor, as tensors that the caller owns. All are on one device. */
export function gatherRows<T extends Record<string, Tensor>>(tensors: T, rows: readonly number[]): T {
  const gathered = scope(() => {
    const { device } = Object.values(tensors)[0]!
    const indices = Tensor.from(device, Int32Array.from(rows), [rows.length], 'int32')
    return Object.fromEntries(
      Object.entries(tensors).map(([name, tensor]) => {
        const result = Tensor.empty(device, [rows.length, ...tensor.shape.slice(1)], tensor.dtype, 'cache')
        device.ops.gather_rows(result, tensor, indices)
        return [name, result]
      }),
    )
  })
  for (const tensor of Object.values(gathered)) keep(tensor)
  return gathered as T
}

/** Queues x[i] = x[rows[i]] in place; rows int32 [R], as many as x has. */
export function permuteRows(x: Tensor, rows: Tensor): void {
  scope(() => {
    const permuted = Tensor.empty(x.device, x.shape, x.dtype)
    x.device.ops.gather_rows(permuted, x, rows)
    x.device.ops.copy(x, permuted)
  })
}
