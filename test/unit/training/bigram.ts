import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  backward,
  dropout,
  embedding,
  linearCrossEntropy,
  Parameter,
  sum,
  Tape,
  withTape,
} from '../../../lib/autograd/index.js'
import { Batch } from '../../../lib/data/batch.js'
import type { BatchData } from '../../../lib/data/batch-data.js'
import { writeSafetensors } from '../../../lib/formats/safetensors-writer.js'
import type { Model } from '../../../lib/model/model.js'
import type { Adapter } from '../../../lib/peft/adapter.js'
import { Device, scope, Tensor } from '../../../lib/tensor/index.js'

const VOCABULARY = 11
const WIDTH = 6

export type Example = { inputIds: number[]; labels?: number[] }

/** Plain packing, no chats. */
export const collator = {
  collate: (examples: readonly Example[]) =>
    Batch.pack(examples.map(({ inputIds, labels = inputIds }) => ({ inputIds, labels }))),
}

/** Walks through the vocabulary with different strides, so that there is something to learn. */
export function examples(count: number): Example[] {
  return Array.from({ length: count }, (_, i) => {
    const length = 4 + (i % 5)
    return { inputIds: Array.from({ length }, (_, t) => (i * 3 + t * (1 + (i % 2))) % VOCABULARY) }
  })
}

/**
 * The smallest model that the trainer can train: a frozen embedding, dropout and a trainable head, which plays the adapter. What it
 * shares with the real one are the operations, not the weights' files.
 */
export class BigramModel {
  readonly head: Parameter
  readonly network = { linearLayers: new Map() } as never
  readonly adapters = ['head']
  readonly tokenizer = {} as never
  /** Called while a checkpoint is being written. */
  onSave: (folder: string) => unknown = () => {}
  busy = new Set<string>()
  readonly #table: Parameter

  private constructor(
    readonly device: Device,
    readonly dropout: number,
  ) {
    const values = (n: number, k: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(k * (i + 1) ** 2))
    this.#table = new Parameter('table', Tensor.from(device, values(VOCABULARY * WIDTH, 1.7), [VOCABULARY, WIDTH]))
    const head = Tensor.from(device, values(VOCABULARY * WIDTH, 0.3), [VOCABULARY, WIDTH], 'float32', 'adapters')
    this.head = new Parameter('head.weight', head, { requiresGrad: true })
  }

  static async open({ dropout = 0 } = {}): Promise<BigramModel> {
    return new BigramModel(await Device.open('cpu'), dropout)
  }

  /** For the Trainer, which asks of it only what is here. */
  get asModel(): Model {
    return this as unknown as Model
  }

  resolveAdapter(): Adapter {
    return { name: 'head', parameters: () => this.parameters() } as unknown as Adapter
  }

  parameters() {
    return new Map([[this.head.name, this.head]])
  }

  trainableParameters() {
    return [this.head]
  }

  withAdapter() {
    return this
  }

  forward(batch: BatchData, { dropoutRng }: { dropoutRng?: Tensor | null } = {}) {
    if (batch.targetIds.length === 0) return {}
    const tape = Tape.disabled ? null : new Tape()
    const upload = (values: Int32Array) => Tensor.from(this.device, values)
    const tensor = withTape(tape, () =>
      scope(() => {
        let x = embedding(upload(batch.inputIds), this.#table, null)
        if (dropoutRng && this.dropout > 0) x = dropout(x, { rng: dropoutRng, site: 1, p: this.dropout })
        const operands = { weight: this.head, bias: null, transposed: false, lora: null }
        const losses = linearCrossEntropy(x, operands, upload(batch.targetRows), upload(batch.targetIds))
        return sum(losses, 1 / batch.targetIds.length)
      }),
    )
    return { loss: { tensor, backward: (scale = 1) => backward(tensor, scale), dispose: () => tensor.dispose() } }
  }

  async saveAdapter(folder: string) {
    await mkdir(folder, { recursive: true })
    const { name, shape } = this.head
    const data = await this.head.data()
    await writeSafetensors(join(folder, 'adapter_model.safetensors'), [{ name, dtype: 'F32', shape, data }])
    await this.onSave(folder)
  }

  beginCall(_kind: string, exclusive = '') {
    if (this.busy.has(exclusive)) throw Object.assign(new Error('busy'), { code: 'ERR_BUSY' })
    if (exclusive) this.busy.add(exclusive)
    return () => this.busy.delete(exclusive)
  }
}

/** The log without what depends on the clock. */
export async function readLog(outputDir: string): Promise<Record<string, number>[]> {
  const lines = (await readFile(join(outputDir, 'log.jsonl'), 'utf8')).trim().split('\n')
  return lines.map((line) => {
    const entries = Object.entries(JSON.parse(line) as Record<string, number>)
    return Object.fromEntries(entries.filter(([key]) => !/per_second|runtime/.test(key)))
  })
}
