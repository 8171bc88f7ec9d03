import type { Model } from '../../lib/model/model.js'
import { Tensor } from '../../lib/tensor/tensor.js'

/**
 * bitsandbytes 0.50 dequantizes on CPUs with AVX-512 as if every row began a new block: element (row, column) gets the scale of block
 * row · ⌊columns / block size⌋ + ⌊column / block size⌋ (cpu_ops.cpp). Its own blocks follow the flattened weight, so where the row
 * length is no multiple of the block size, the model that it trains is not the one that it quantized. A case of `train` was made so.
 *
 * Replaces the weights concerned by what bitsandbytes computed with. Returns their names; none: nothing was changed.
 */
export async function misplaceScales(model: Model, blockSize: number): Promise<string[]> {
  const changed: string[] = []
  for (const [name, parameter] of model.parameters()) {
    const [rows, columns] = parameter.shape as [number, number]
    const concerned =
      (parameter.dtype === 'nf4' || parameter.dtype === 'fp4') && columns % blockSize !== 0 && columns % 16 === 0
    if (!concerned) continue
    const values = await parameter.data()
    // Each block holds an element of code 1 or -1: the largest magnitude is the scale.
    const scales = new Float32Array(Math.ceil(values.length / blockSize))
    for (const [i, value] of values.entries()) {
      const block = Math.floor(i / blockSize)
      scales[block] = Math.max(scales[block]!, Math.abs(value))
    }
    const blocksPerRow = Math.floor(columns / blockSize)
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const i = row * columns + column
        const misplaced = scales[row * blocksPerRow + Math.floor(column / blockSize)]!
        values[i] = (values[i]! / scales[Math.floor(i / blockSize)]!) * misplaced
      }
    }
    parameter.exchange(Tensor.from(model.device, values, parameter.shape, 'float32', 'weights')).dispose()
    changed.push(name)
  }
  return changed
}
