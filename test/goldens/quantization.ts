import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Device } from '../../lib/tensor/device.js'
import { Tensor } from '../../lib/tensor/tensor.js'
import { type ReferenceTensors, readReference } from '../support/reference-tensors.js'
import { goldenDevice } from './models.js'
import { differences, type Figure, Figures, type GoldenCase, valueDeviation } from './result.js'

interface QuantizationCase {
  quant_type: 'nf4' | 'fp4'
  blocksize: 64 | 128
  nested: boolean
}

/** `quantization/four_bit`: weights, and what bitsandbytes makes of them. */
export function quantizationCases(folder: string): GoldenCase[] {
  const path = join(folder, 'quantization', 'four_bit.json')
  if (!existsSync(path)) return []
  const cases = JSON.parse(readFileSync(path, 'utf8')) as Record<string, QuantizationCase>
  const reading = readReference(path.replace(/json$/, 'safetensors'))
  reading.catch(() => {})
  return Object.entries(cases).map(([name, settings]) => ({
    name: `quantization/${name}`,
    run: async () => runQuantization(await reading, name, settings),
  }))
}

async function runQuantization(all: ReferenceTensors, name: string, settings: QuantizationCase): Promise<Figure[]> {
  const device = await Device.open(goldenDevice())
  const reference = (part: string) => all.get(`${name}.${part}`)!
  const { shape, values } = reference('weight')
  const figures = new Figures()
  const tensors: Tensor[] = []
  const own = (tensor: Tensor) => {
    tensors.push(tensor)
    return tensor
  }
  try {
    const weight = own(Tensor.from(device, values as Float32Array, [...shape]))
    const { quant_type: type, blocksize: blockSize, nested: doubleQuant } = settings
    const quantized = own(Tensor.emptyQuantized(device, [...shape], { type, blockSize, doubleQuant }))
    device.ops.quantize(quantized, weight)

    const output = (part: string, dtype: 'uint8' | 'float32') => {
      const size = reference(part).values.length
      return own(Tensor.empty(device, [size], dtype))
    }
    const codes = output('packed', 'uint8')
    const absmax = output('absmax', doubleQuant ? 'uint8' : 'float32')
    const nestedAbsmax = doubleQuant ? output('nested_absmax', 'float32') : null
    const nestedCode = doubleQuant ? output('nested_code', 'float32') : null
    const offset = doubleQuant ? output('offset', 'float32') : null
    device.ops.quantized_export(codes, absmax, nestedAbsmax, nestedCode, offset, quantized)
    figures.add('different codes', differences(await integers(codes), reference('packed').values), 0)
    if (doubleQuant) figures.add('different absmax', differences(await integers(absmax), reference('absmax').values), 0)
    const floats = { nested_absmax: nestedAbsmax, nested_code: nestedCode, offset, absmax: doubleQuant ? null : absmax }
    for (const [part, tensor] of Object.entries(floats)) {
      if (tensor) figures.add(part, valueDeviation(await numbers(tensor), reference(part).values), 1e-7)
    }
    const dense = own(Tensor.empty(device, [...shape], 'float32'))
    device.ops.dequantize(dense, quantized)
    figures.add('dequantized', valueDeviation(await numbers(dense), reference('dequantized').values), 1e-7)
    return figures.all()
  } finally {
    for (const tensor of tensors) tensor.dispose()
  }
}

const integers = async (tensor: Tensor) => (await tensor.data()) as Uint8Array
const numbers = async (tensor: Tensor) => (await tensor.data()) as Float32Array
