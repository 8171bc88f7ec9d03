/** What each weight is when a model is written: the base's own, with an adapter's updates and token rows added. */
import type { TokenRows } from '../peft/adapter.js'
import { isTied } from '../peft/token-rows.js'
import { isQuantized, type MappedFile, scope, Tensor } from '../tensor/index.js'
import { addLoraDelta, toFloat32 } from './adapters.js'
import { dtypeOfFile, type Origin, originDtype } from './load.js'
import type { ModelAdapter, ModelState } from './state.js'

export interface WeightExport {
  readonly name: string
  readonly shape: readonly number[]
  readonly dtype: Origin['dtype']
  /** Computes the values, float32; one weight at a time is held. */
  readonly read: () => Promise<Float32Array>
  readonly close: () => void
}

export interface ModelExport {
  exports: WeightExport[]
  vocabSize: number
  /** The head, which shared the embedding's weight, gets its own. */
  untied: boolean
  /** Tokens with a zero row in the head: they must be suppressed. */
  unpredictable: readonly number[]
}

export function weightExports(state: ModelState, adapter: ModelAdapter | null, base: 'original' | 'dequantized'): ModelExport {
  const { network } = state
  const headWeight = `${network.headName}.weight`
  const tokens = adapter?.tokenRows ?? state.newTokens?.tokenRows ?? null
  const unpredictable = (tokens?.tokenIds ?? []).filter((id) => !tokens?.head?.tokenIds.includes(id))
  const ownHead = adapter?.replaced(headWeight) || adapter?.layers.has(network.headName)
  const untied = isTied(network) && (unpredictable.length > 0 || Boolean(ownHead))
  const vocabSize = Math.max(network.shape.vocabSize, ...(tokens?.tokenIds ?? []).map((id) => id + 1))
  const exporter = new Exporter(state, adapter, base, tokens, vocabSize)
  const exports = [...network.parameters.keys()].map((name) => exporter.export(name, name))
  if (untied) exports.push(exporter.export(headWeight, network.linearLayers.get(network.headName)!.weight.name))
  return { exports, vocabSize, untied, unpredictable }
}

class Exporter {
  readonly #state: ModelState
  readonly #adapter: ModelAdapter | null
  readonly #base: 'original' | 'dequantized'
  readonly #tokens: TokenRows | null
  readonly #vocabSize: number

  constructor(
    state: ModelState,
    adapter: ModelAdapter | null,
    base: 'original' | 'dequantized',
    tokens: TokenRows | null,
    vocabSize: number,
  ) {
    this.#state = state
    this.#adapter = adapter
    this.#base = base
    this.#tokens = tokens
    this.#vocabSize = vocabSize
  }

  /** @param parameter the base's parameter that the weight comes from: the embedding for a tied head */
  export(name: string, parameter: string): WeightExport {
    const { shape } = this.#state.network.parameters.get(parameter)!
    const grows = this.#tokens !== null && this.#isVocabulary(name)
    const files: MappedFile[] = []
    return {
      name,
      shape: grows ? [this.#vocabSize, shape[1]!] : shape,
      dtype: this.#state.origins.get(parameter)?.dtype ?? originDtype(this.#state.config),
      read: () => {
        const value = scope(() => this.#compute(name, parameter, grows, files))
        const data = value.data() as Promise<Float32Array>
        value.dispose()
        return data
      },
      close: () => {
        for (const file of files) file.close()
      },
    }
  }

  #isVocabulary(name: string): boolean {
    const { embeddingName, headName } = this.#state.network
    return name === `${embeddingName}.weight` || name === `${headName}.weight`
  }

  /** float32 */
  #compute(name: string, parameter: string, grows: boolean, files: MappedFile[]): Tensor {
    const module = name.slice(0, -'.weight'.length)
    const own = this.#adapter?.replaced(name)
    const sum = own ? toFloat32(own.value, 'other') : this.#baseValue(parameter, files)
    const layer = name.endsWith('.weight') ? this.#adapter?.layers.get(module) : undefined
    if (layer) addLoraDelta(sum, layer, this.#state.network.linearLayers.get(module)!)
    return grows ? this.#withTokenRows(sum, name) : sum
  }

  #baseValue(parameter: string, files: MappedFile[]): Tensor {
    const { merged, network, origins, device } = this.#state
    const value = merged?.replaced.get(parameter) ?? network.parameters.get(parameter)!.value
    const stored = origins.get(parameter)?.stored
    if (this.#base === 'dequantized' || !stored || !isQuantized(value.dtype)) return toFloat32(value, 'other')
    const file = device.openFile(stored.path)
    files.push(file)
    return toFloat32(
      Tensor.fromFile(device, file, stored.byteOffset, stored.shape, dtypeOfFile[stored.dtype]!, 'other'),
      'other',
    )
  }

  /** The embedding gets the trained rows; the head those of tokens that it predicts, and zeros for those that are only read. */
  #withTokenRows(table: Tensor, name: string): Tensor {
    const { tokenIds, rows, head } = this.#tokens!
    const [vocabulary, width] = table.shape as [number, number]
    const grown = Tensor.zeros(table.device, [this.#vocabSize, width], 'float32', 'other')
    const { ops } = table.device
    ops.copy(grown.rows(0, vocabulary), table)
    const isHead = name === `${this.#state.network.headName}.weight`
    for (const [row, id] of tokenIds.entries()) {
      if (isHead) ops.fill(grown.rows(id, 1), 0)
      else ops.copy(grown.rows(id, 1), rows.value.rows(row, 1))
    }
    if (isHead && head) {
      const own = Tensor.empty(table.device, [head.tokenIds.length, width], 'float32')
      ops.gather_rows(own, head.rows.value, head.index)
      for (const [i, id] of head.tokenIds.entries()) ops.copy(grown.rows(id, 1), own.rows(i, 1))
    }
    return grown
  }
}
