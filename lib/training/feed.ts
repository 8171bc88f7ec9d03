import { invalidArgument } from '../errors.js'
import type { ResolvedArguments } from './arguments.js'
import {
  groupedSampler,
  lengthGroupedSampler,
  prefixGroups,
  randomSampler,
  type Sampler,
  type SamplingStrategy,
  sequentialSampler,
} from './samplers.js'

/** Samples that can be fetched by index. */
export interface IndexedDataset<T> {
  readonly length: number
  /** undefined is what arrays say beyond their end; for an index below `length` it is an error. */
  at(index: number): T | Promise<T> | undefined
}

/** What a training or evaluation reads; the function starts an iterable anew for each epoch. */
export type TrainingDataset<T> = readonly T[] | IndexedDataset<T> | (() => AsyncIterable<T>)

/** Where a feed stands: the epoch, and the samples of it that were handed out. */
export interface FeedPosition {
  epoch: number
  position: number
}

/** Hands out the samples of one optimizer step after the other, over epochs without end. */
export interface Feed<T> {
  readonly strategy: SamplingStrategy
  /** Samples of an epoch; null for an iterable. */
  readonly length: number | null
  next(): Promise<{ examples: T[]; after: FeedPosition; endsEpoch: boolean }>
  close(): Promise<void>
}

/** How samples are grouped, where the caller knows better than the default. */
export interface Grouping<T> {
  /** Samples with the same key have a common context (`group_by_prefix`). Default: those whose texts begin alike. */
  prefixKey?: (example: T, index: number) => string
  /** Length of a sample (`group_by_length`). Default: its token ids, else its characters. */
  lengthOf?: (example: T, index: number) => number
}

/** The samples of an indexed data set, fetched together. */
export function fetchAll<T>(dataset: IndexedDataset<T>, indices: readonly number[]): Promise<T[]> {
  return Promise.all(indices.map((index) => fetch(dataset, index)))
}

async function fetch<T>(dataset: IndexedDataset<T>, index: number): Promise<T> {
  const example = await dataset.at(index)
  if (example === undefined) throw invalidArgument(`the data set of length ${dataset.length} gave nothing for sample ${index}`)
  return example
}

/** A data set as it is meant: indexed, or an iterable. @throws QuantuneError `ERR_INVALID_ARGUMENT` if it is neither, or empty */
export function checkDataset<T>(dataset: unknown, name: string): TrainingDataset<T> {
  if (typeof dataset === 'function') return dataset as () => AsyncIterable<T>
  const { length, at } = (dataset ?? {}) as Partial<IndexedDataset<T>>
  if (typeof dataset === 'string' || typeof length !== 'number' || typeof at !== 'function') {
    const hint = typeof dataset === 'string' ? '; Dataset.fromJsonl opens a file' : ''
    throw invalidArgument(
      `${name}: expected an array, { length, at(index) } or a function that returns an async iterable${hint}`,
    )
  }
  if (length === 0) throw invalidArgument(`${name}: expected at least one sample, received none`)
  return dataset as IndexedDataset<T>
}

/** Starts an iterable data set. @throws QuantuneError `ERR_INVALID_ARGUMENT` where the function gives something else */
export function iterate<T>(dataset: () => AsyncIterable<T>, name: string): AsyncIterator<T> {
  const iterable: Partial<AsyncIterable<T>> | undefined = dataset()
  const start = iterable?.[Symbol.asyncIterator]
  if (typeof start === 'function') return start.call(iterable)
  throw invalidArgument(`${name}: expected the function to return an async iterable, as an async function* does`)
}

/** Samples of an optimizer step. */
export const samplesPerStep = (args: Pick<ResolvedArguments, 'perDeviceTrainBatchSize' | 'gradientAccumulationSteps'>) =>
  args.perDeviceTrainBatchSize * args.gradientAccumulationSteps

/** The feed of a training, from `start` on. */
export async function openFeed<T>(
  dataset: TrainingDataset<T>,
  args: ResolvedArguments,
  grouping: Grouping<T>,
  start: FeedPosition,
): Promise<Feed<T>> {
  const strategy = args.trainSamplingStrategy
  if (typeof dataset !== 'function') {
    const indexed = dataset as IndexedDataset<T>
    return new IndexedFeed(indexed, await samplerOf(indexed, args, grouping), strategy ?? 'random', samplesPerStep(args), start)
  }
  if (strategy && strategy !== 'sequential') {
    throw invalidArgument(
      `TrainingArguments.trainSamplingStrategy: an iterable is read in order, "${strategy}" needs { length, at }`,
    )
  }
  if (args.maxSteps < 1) {
    throw invalidArgument('TrainingArguments.maxSteps: expected a number >= 1, as an iterable has no length to count epochs by')
  }
  return IterableFeed.open(dataset, samplesPerStep(args), start)
}

async function samplerOf<T>(dataset: IndexedDataset<T>, args: ResolvedArguments, grouping: Grouping<T>): Promise<Sampler> {
  const { length } = dataset
  const { seed } = args
  switch (args.trainSamplingStrategy) {
    case 'sequential':
      return sequentialSampler(length)
    case 'group_by_length':
      return lengthGroupedSampler(await each(dataset, grouping.lengthOf ?? defaultLength), samplesPerStep(args), seed)
    case 'group_by_prefix':
      if (grouping.prefixKey) return groupedSampler(await each(dataset, grouping.prefixKey), seed)
      return groupedSampler(prefixGroups(await each(dataset, beginningOf)), seed)
    default:
      return randomSampler(length, seed)
  }
}

const BREATHER = 1000

async function each<T, R>(dataset: IndexedDataset<T>, of: (example: T, index: number) => R): Promise<R[]> {
  const results: R[] = []
  for (let i = 0; i < dataset.length; i++) {
    results.push(of(await fetch(dataset, i), i))
    if (i % BREATHER === BREATHER - 1) await new Promise((resolve) => setImmediate(resolve))
  }
  return results
}

/** The text of an example of any of the collator's forms, in the order in which it is rendered. */
function beginningOf(example: unknown): string {
  const { messages, prompt, completion, text, inputIds } = (example ?? {}) as Record<string, unknown>
  if (Array.isArray(messages)) return messages.map((message) => contentOf(message)).join('\n')
  if (inputIds) return String.fromCodePoint(...Array.from(inputIds as ArrayLike<number>).slice(0, 50_000))
  const parts = [prompt, completion, text].filter((part) => part !== undefined)
  return parts.length ? parts.map(contentOf).join('\n') : (JSON.stringify(example) ?? '')
}

function contentOf(part: unknown): string {
  if (typeof part === 'string') return part
  const content = (part as { content?: unknown } | null)?.content
  return typeof content === 'string' ? content : (JSON.stringify(content ?? part) ?? '')
}

function defaultLength(example: unknown): number {
  const ids = (example as { inputIds?: ArrayLike<number> } | null)?.inputIds
  return ids ? ids.length : beginningOf(example).length
}

class IndexedFeed<T> implements Feed<T> {
  readonly length: number
  #order: Uint32Array
  #at: FeedPosition

  constructor(
    readonly dataset: IndexedDataset<T>,
    readonly sampler: Sampler,
    readonly strategy: SamplingStrategy,
    readonly samples: number,
    start: FeedPosition,
  ) {
    this.length = dataset.length
    this.#at = { ...start }
    this.#order = sampler(start.epoch)
  }

  async next() {
    if (this.#at.position >= this.length) {
      this.#at = { epoch: this.#at.epoch + 1, position: 0 }
      this.#order = this.sampler(this.#at.epoch)
    }
    const { epoch, position } = this.#at
    const indices = this.#order.subarray(position, position + this.samples)
    const examples = await fetchAll(this.dataset, [...indices])
    this.#at = { epoch, position: position + indices.length }
    return { examples, after: this.#at, endsEpoch: this.#at.position >= this.length }
  }

  async close() {}
}

class IterableFeed<T> implements Feed<T> {
  readonly strategy = 'sequential'
  readonly length = null
  #iterator: AsyncIterator<T>
  /** One sample is read ahead, to know where the epoch ends. */
  #ahead: IteratorResult<T>

  private constructor(
    readonly dataset: () => AsyncIterable<T>,
    readonly samples: number,
    private at: FeedPosition,
    iterator: AsyncIterator<T>,
    first: IteratorResult<T>,
  ) {
    this.#iterator = iterator
    this.#ahead = first
  }

  static async open<T>(dataset: () => AsyncIterable<T>, samples: number, start: FeedPosition): Promise<IterableFeed<T>> {
    const iterator = iterate(dataset, 'trainDataset')
    let first = await iterator.next()
    for (let skipped = 0; skipped < start.position && !first.done; skipped++) first = await iterator.next()
    return new IterableFeed(dataset, samples, { ...start }, iterator, first)
  }

  async next() {
    if (this.#ahead.done) {
      this.#iterator = iterate(this.dataset, 'trainDataset')
      this.#ahead = await this.#iterator.next()
      if (this.#ahead.done) throw invalidArgument('trainDataset: expected at least one sample, the iterable gave none')
      if (this.at.position > 0) this.at = { epoch: this.at.epoch + 1, position: 0 }
    }
    const examples: T[] = []
    while (!this.#ahead.done && examples.length < this.samples) {
      examples.push(this.#ahead.value)
      this.#ahead = await this.#iterator.next()
    }
    this.at = { epoch: this.at.epoch, position: this.at.position + examples.length }
    return { examples, after: this.at, endsEpoch: this.#ahead.done === true }
  }

  async close() {
    await this.#iterator.return?.()
  }
}
