import { EventEmitter } from 'node:events'
import { z } from 'zod'
import type { TrainerEvents, TypedEmitter } from '../../types/events.js'
import { ChatCollator, type Collator, type TrainingExample } from '../data/chat-collator.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { trainingOf } from '../model/calls.js'
import type { Model } from '../model/model.js'
import { assertKnownKeys, parseOptions } from '../options.js'
import { type ResolvedArguments, resolveArguments, type TrainingArguments } from './arguments.js'
import { evaluateLoss, withPrefix } from './evaluation.js'
import { checkDataset, type Grouping, type TrainingDataset } from './feed.js'
import { traineeOf } from './model.js'
import { type Observer, TrainingRun } from './run.js'
import { newState } from './state.js'
import type { Checkpoint, EvaluateEvent, Metrics, StepEvent, TrainerState, TrainOutput } from './types.js'

/** Awaited, in this order after each step: onStepEnd, onEvaluate, onSave. One that throws stops the training after a checkpoint. */
export interface TrainerCallbacks {
  onStepEnd?: (event: StepEvent) => unknown
  onEvaluate?: (event: EvaluateEvent) => unknown
  onSave?: (event: Checkpoint) => unknown
}

export interface MetricsContext {
  /** The model, bound to the adapter that is being trained. */
  model: Model
  /** Optimizer steps so far. */
  step: number
  signal: AbortSignal | undefined
}

export interface TrainerOptions<T = TrainingExample> extends Grouping<T> {
  model: Model
  /** The adapter to train; default: the model's current one. Without any, the base itself is trained: its trainable parameters, all if none is. */
  adapter?: string | null
  /** An array, anything with `length` and `at(index)` such as a `Dataset`, or a function that starts an async iterable (then `maxSteps` is needed). */
  trainDataset?: TrainingDataset<T>
  /** What `eval_loss` is computed on. */
  evalDataset?: TrainingDataset<T>
  /** Default: a ChatCollator with the model's tokenizer. */
  collator?: Collator<T>
  /** Reported with the prefix `eval_`. */
  computeMetrics?: (context: MetricsContext) => Metrics | Promise<Metrics>
  /** Awaited between steps; listeners of `trainer.on(…)` are not. */
  callbacks?: TrainerCallbacks | readonly TrainerCallbacks[]
  args?: TrainingArguments
}

export interface TrainOptions {
  /** Aborted: the micro-batch under way is finished, a checkpoint saved, and the promise rejected with `signal.reason`. */
  signal?: AbortSignal
  /** true: the newest checkpoint of `outputDir`; 'auto': the same, or start anew if there is none; or a checkpoint's folder. */
  resumeFromCheckpoint?: boolean | 'auto' | (string & {})
}

const evaluateOptionsSchema = z.strictObject({ signal: z.instanceof(AbortSignal).optional() })
const trainOptionsSchema = evaluateOptionsSchema.extend({
  resumeFromCheckpoint: z.union([z.boolean(), z.string().min(1)]).optional(),
})

/** The events' types; an EventEmitter underneath. */
const Emitter = EventEmitter as unknown as new () => TypedEmitter<TrainerEvents>

/** Trains an adapter, or a whole model, and reports on the way. */
export class Trainer<T = TrainingExample> extends Emitter {
  readonly model: Model
  readonly args: Readonly<ResolvedArguments>
  readonly #options: TrainerOptions<T>
  readonly #collator: Collator<T>
  readonly #callbacks: readonly TrainerCallbacks[]
  #run: TrainingRun<T> | null = null
  #running: Promise<unknown> | null = null
  #stopping = false
  #disposed = false
  /** What the promise of an asynchronous listener was rejected with. */
  #lateFailure: { error: unknown } | null = null

  /** @throws QuantuneError `ERR_INVALID_ARGUMENT` */
  constructor(options: TrainerOptions<T>) {
    super()
    const { model, evalDataset, computeMetrics, callbacks = [] } = checkOptions(options)
    this.model = model
    this.args = resolveArguments(options.args, evalDataset !== undefined || computeMetrics !== undefined)
    this.#options = options
    this.#collator = options.collator ?? (new ChatCollator(model.tokenizer) as unknown as Collator<T>)
    this.#callbacks = Array.isArray(callbacks) ? callbacks : [callbacks as TrainerCallbacks]
  }

  /** Where the training stands, or stood at its end; a copy. */
  get state(): TrainerState {
    const { globalStep, maxSteps, epoch, logHistory, bestMetric, bestGlobalStep, bestModelCheckpoint } =
      this.#run?.state ?? newState(Math.max(0, this.args.maxSteps))
    return structuredClone({ globalStep, maxSteps, epoch, logHistory, bestMetric, bestGlobalStep, bestModelCheckpoint })
  }

  /**
   * Trains until the last step, `stop()`, or early stopping.
   *
   * @throws QuantuneError `ERR_BUSY` while the same adapter is being trained, `ERR_ALL_LABELS_MASKED` for an optimizer step without a
   * labelled token, `ERR_NOT_FINITE` when loss or gradients are (the last checkpoint is intact), `ERR_IO` when saving fails;
   * `signal.reason` when aborted; what a listener, a callback, the data set or the collator threw
   */
  async train(options: TrainOptions = {}): Promise<TrainOutput> {
    this.#assertLive()
    const { signal, resumeFromCheckpoint } = parseOptions(trainOptionsSchema, options, 'TrainOptions')
    signal?.throwIfAborted()
    const dataset = checkDataset<T>(this.#options.trainDataset, 'trainDataset')
    const trainee = traineeOf(this.model, this.#options.adapter)
    const name = trainee.adapter?.name ?? null
    const endCall = this.model.beginCall('train', trainingOf(name))
    const training = this.#train(() =>
      TrainingRun.open<T>({
        trainee,
        dataset,
        grouping: this.#options,
        collator: this.#collator,
        args: this.args,
        evaluate: (step, signal) => this.#evaluate(name, step, signal),
        observer: this.#observer(),
        signal,
        shouldStop: () => this.#stopping,
        resumeFromCheckpoint,
      }),
    ).finally(endCall)
    this.#running = training.catch(() => {})
    return training
  }

  async #train(open: () => Promise<TrainingRun<T>>): Promise<TrainOutput> {
    this.#lateFailure = null
    this.#stopping = false
    this.#run = null
    this.#run = await open()
    return this.#run.execute()
  }

  /** Finishes the step under way and saves; `train()` then resolves with the reason 'stopped'. Nothing while none is running. */
  stop(): void {
    this.#stopping = true
  }

  /** Prints a line without tearing the progress bar; nothing where progress is disabled. */
  print(line: string): void {
    this.#run?.print(line)
  }

  /**
   * Evaluates now: the loss over `evalDataset`, and `computeMetrics`.
   * @throws QuantuneError `ERR_INVALID_ARGUMENT` where the trainer has neither
   */
  async evaluate(options: { signal?: AbortSignal } = {}): Promise<Metrics> {
    this.#assertLive()
    const { signal } = parseOptions(evaluateOptionsSchema, options, 'EvaluateOptions')
    const { evalDataset, computeMetrics } = this.#options
    if (!evalDataset && !computeMetrics)
      throw invalidArgument('evaluate: the trainer has neither an evalDataset nor computeMetrics')
    const name = this.model.resolveAdapter(this.#options.adapter)?.name ?? null
    const endCall = this.model.beginCall('evaluate')
    return this.#evaluate(name, this.state.globalStep, signal).finally(endCall)
  }

  async #evaluate(adapter: string | null, step: number, signal: AbortSignal | undefined): Promise<Metrics> {
    const { evalDataset, computeMetrics } = this.#options
    const { perDeviceEvalBatchSize: batchSize, maxTokensPerBatch: maxTokens } = this.args
    const metrics: Metrics = {}
    if (evalDataset) {
      const dataset = checkDataset<T>(evalDataset, 'evalDataset')
      const options = { model: this.model, adapter, dataset, collator: this.#collator, batchSize, maxTokens, signal }
      Object.assign(metrics, await evaluateLoss(options))
    }
    if (computeMetrics) {
      Object.assign(metrics, withPrefix(await computeMetrics({ model: this.model.withAdapter(adapter), step, signal })))
    }
    signal?.throwIfAborted()
    return metrics
  }

  /** Stops a running training as `stop()` does and waits for it. The model stays: it belongs to the caller. */
  async dispose(): Promise<void> {
    this.#disposed = true
    this.stop()
    await this.#running
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  #observer(): Observer {
    const call = async <E>(of: (callbacks: TrainerCallbacks) => ((event: E) => unknown) | undefined, event: E) => {
      for (const callbacks of this.#callbacks) await of(callbacks)?.call(callbacks, event)
    }
    return {
      step: async (event) => {
        this.#emit('step', event)
        await call((callbacks) => callbacks.onStepEnd, event)
      },
      log: async (event) => {
        this.#emit('log', event)
      },
      evaluate: async (event) => {
        this.#emit('evaluate', event)
        await call((callbacks) => callbacks.onEvaluate, event)
      },
      save: async (event) => {
        this.#emit('save', event)
        await call((callbacks) => callbacks.onSave, event)
      },
      end: async (output) => {
        await Promise.all(this.#emit('end', output))
      },
      assertSound: () => {
        const failure = this.#lateFailure
        this.#lateFailure = null
        if (failure) throw failure.error
      },
    }
  }

  /** As emit, but the rejections of asynchronous listeners are kept for the next step instead of ending the process. */
  #emit<E extends keyof TrainerEvents>(event: E, payload: Parameters<TrainerEvents[E]>[0]): unknown[] {
    const returned = this.rawListeners(event).map((listener): unknown => Reflect.apply(listener, this, [payload]))
    for (const promise of returned) {
      if (!(promise instanceof Promise)) continue
      promise.catch((error: unknown) => {
        this.#lateFailure ??= { error }
      })
    }
    return returned
  }

  #assertLive(): void {
    if (this.#disposed) throw new QuantuneError('ERR_DISPOSED', 'this Trainer has been disposed of')
  }
}

const functionOptions = ['computeMetrics', 'prefixKey', 'lengthOf'] as const

function checkOptions<T>(options: TrainerOptions<T>): TrainerOptions<T> {
  const known = ['model', 'adapter', 'trainDataset', 'evalDataset', 'collator', 'callbacks', 'args', ...functionOptions]
  assertKnownKeys(options, known, 'TrainerOptions')
  if (typeof options.model?.forward !== 'function') throw invalidArgument('TrainerOptions.model: expected a Model')
  if (options.collator && typeof options.collator.collate !== 'function') {
    throw invalidArgument('TrainerOptions.collator: expected an object with a function collate')
  }
  for (const name of functionOptions) {
    const value = options[name]
    if (value !== undefined && typeof value !== 'function') {
      throw invalidArgument(`TrainerOptions.${name}: expected a function, received ${typeof value}`)
    }
  }
  for (const name of ['trainDataset', 'evalDataset'] as const) {
    if (options[name] !== undefined) checkDataset(options[name], `TrainerOptions.${name}`)
  }
  for (const callbacks of [options.callbacks ?? []].flat()) {
    assertKnownKeys(callbacks, ['onStepEnd', 'onEvaluate', 'onSave'], 'TrainerOptions.callbacks')
  }
  return options
}
