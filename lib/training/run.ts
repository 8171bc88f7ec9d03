import { basename, dirname, join } from 'node:path'
import type { BatchData } from '../data/batch-data.js'
import type { Collator } from '../data/chat-collator.js'
import { log } from '../env.js'
import { QuantuneError } from '../errors.js'
import { writeJsonAtomically } from '../formats/atomic-file.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import type { ResolvedArguments } from './arguments.js'
import { judge } from './best-model.js'
import { describeChanges } from './changes.js'
import {
  findCheckpoint,
  loadOptimizer,
  loadParameters,
  readState,
  recoverOutput,
  rotateCheckpoints,
  STATE_FILE,
  writeCheckpoint,
} from './checkpoint.js'
import { type Feed, type Grouping, openFeed, samplesPerStep, type TrainingDataset } from './feed.js'
import { HoldBack } from './hold-back.js'
import { TrainingLog } from './log.js'
import { countTargets, microBatches } from './micro-batches.js'
import { dropoutOf, optimizerOf, type Trainee } from './model.js'
import type { AdamW } from './optimizer.js'
import { openProgress, type Progress } from './progress.js'
import { recomputesActivations } from './recompute.js'
import { learningRateSchedule } from './schedules.js'
import { logLine, meanLoss, newState, type RunSetup, type RunState, stateToJson } from './state.js'
import { Throughput } from './throughput.js'
import type { Checkpoint, EvaluateEvent, LogEntry, LogEvent, Metrics, StepEvent, StopReason, TrainOutput } from './types.js'

/** What a run reports to; every method may fail, and then the run stops after a checkpoint. */
export interface Observer {
  step(event: StepEvent): Promise<void>
  log(event: LogEvent): Promise<void>
  evaluate(event: EvaluateEvent): Promise<void>
  save(event: Checkpoint): Promise<void>
  end(output: TrainOutput): Promise<void>
  /** Throws what a listener's promise was rejected with meanwhile. */
  assertSound(): void
}

export interface RunOptions<T> {
  trainee: Trainee
  dataset: TrainingDataset<T>
  grouping: Grouping<T>
  collator: Collator<T>
  args: ResolvedArguments
  evaluate: (step: number, signal: AbortSignal | undefined) => Promise<Metrics>
  observer: Observer
  signal: AbortSignal | undefined
  /** Asked between steps. */
  shouldStop: () => boolean
  resumeFromCheckpoint: boolean | string | undefined
}

/** One call of `train()`. */
export class TrainingRun<T> {
  readonly state: RunState
  #progress: Progress
  readonly #optimizer: AdamW
  /** float32 [1]: sum of the step losses since the last log. */
  readonly #lossSum: Tensor
  readonly #holdBack: HoldBack
  readonly #dropout: number
  #log!: TrainingLog
  #feed!: Feed<T>
  #learningRate!: (step: number) => number
  #savedStep: number
  #lastCheckpoint: string | null
  #lastMetrics: Metrics = {}
  readonly #throughput = new Throughput()
  /** The error under way came from outside the device, between steps: what was learned is sound and can be saved. */
  #sound = false

  private constructor(
    readonly options: RunOptions<T>,
    state: RunState,
    readonly setup: RunSetup,
    checkpoint: string | null,
  ) {
    const { trainee, args } = options
    this.state = state
    this.#savedStep = state.globalStep
    this.#lastCheckpoint = checkpoint
    this.#optimizer = optimizerOf(trainee, args)
    this.#lossSum = keep(Tensor.zeros(trainee.model.device, [1], 'float32', 'optimizer'))
    this.#holdBack = new HoldBack(trainee.model.device)
    this.#dropout = dropoutOf(trainee)
    this.#progress = openProgress(0, 0, true)
  }

  /** Opens everything a run needs and loads the checkpoint, if it is to be resumed. */
  static async open<T>(options: RunOptions<T>): Promise<TrainingRun<T>> {
    const { args, trainee, dataset, grouping } = options
    await recoverOutput(args.outputDir)
    const checkpoint = await findCheckpoint(args.outputDir, options.resumeFromCheckpoint)
    const saved = checkpoint ? await readState(checkpoint) : null
    const feed = await openFeed(dataset, args, grouping, saved?.state.feed ?? { epoch: 0, position: 0 })
    const setup = setupOf(options, feed)
    const maxSteps = totalSteps(args, feed)
    const state = saved ? { ...saved.state, maxSteps } : newState(maxSteps)
    if (checkpoint) moveBest(state, checkpoint)
    const run = new TrainingRun(options, state, setup, checkpoint)
    run.#feed = feed
    try {
      run.#learningRate = learningRateSchedule(args.lrSchedulerType, {
        learningRate: args.learningRate,
        warmupSteps: args.warmupSteps,
        totalSteps: maxSteps,
        kwargs: args.lrSchedulerKwargs,
      })
      if (checkpoint && saved) {
        await loadParameters(checkpoint, trainee.parameters)
        await loadOptimizer(checkpoint, run.#optimizer, saved.optimizerSteps)
        run.#lossSum.write(Float32Array.of(state.windowLoss))
      }
      run.#log = await TrainingLog.open(args.outputDir, saved ? state.globalStep : null)
      run.#progress = openProgress(maxSteps, state.globalStep, args.disableProgress)
      if (checkpoint && saved) run.#warn(describeChanges(checkpoint, saved.setup, setup))
      return run
    } catch (error) {
      await run.#close()
      throw error
    }
  }

  /** Prints above the progress bar. */
  print(line: string): void {
    this.#progress.print(line)
  }

  #warn(message: string | null): void {
    if (message === null) return
    log('warn', message)
    this.print(message)
  }

  async execute(): Promise<TrainOutput> {
    const started = performance.now()
    const firstStep = this.state.globalStep
    try {
      if (this.options.args.evalOnStart && firstStep === 0) await this.#evaluate()
      const stopReason = await this.#steps()
      return await this.#finish(stopReason, firstStep, (performance.now() - started) / 1000)
    } catch (error) {
      await this.#saveAfterError()
      throw error
    } finally {
      await this.#close()
    }
  }

  async #steps(): Promise<StopReason> {
    const { args, observer, signal } = this.options
    const { state } = this
    this.#throughput.take()
    while (state.globalStep < state.maxSteps) {
      if (this.options.shouldStop()) return 'stopped'
      await this.#fromOutside(() => {
        signal?.throwIfAborted()
        observer.assertSound()
      })
      const learningRate = this.#learningRate(state.globalStep)
      const { examples, after, endsEpoch } = await this.#fromOutside(() => this.#feed.next())
      await this.#step(examples, learningRate)
      state.globalStep++
      state.windowSteps++
      state.feed = after
      state.epoch = after.epoch + (this.#feed.length ? after.position / this.#feed.length : endsEpoch ? 1 : 0)
      const event = { step: state.globalStep, maxSteps: state.maxSteps, epoch: state.epoch, learningRate }
      this.#progress.step(event)
      await this.#fromOutside(() => observer.step(event))
      const last = state.globalStep >= state.maxSteps
      if (last || isDue('steps', state.globalStep, args.loggingSteps) || (args.loggingFirstStep && state.globalStep === 1)) {
        await this.#logLoss(event)
      }
      const patienceIsOut = isDue(args.evalStrategy, state.globalStep, args.evalSteps, endsEpoch) && (await this.#evaluate())
      if (this.#saveIsDue(endsEpoch, last)) await this.#save()
      if (patienceIsOut) return 'early-stopping'
      // Timers, sockets and finalizers get their turn.
      await new Promise((resolve) => setImmediate(resolve))
    }
    return 'completed'
  }

  /** Queues one optimizer step; the loss is the mean over the labelled tokens of all its micro-batches. */
  async #step(examples: T[], learningRate: number): Promise<void> {
    const { collator, args, signal } = this.options
    const { perDeviceTrainBatchSize: batchSize, maxTokensPerBatch: maxTokens } = args
    const batches = await this.#fromOutside(async () => {
      const cut = await microBatches(collator, examples, { batchSize, maxTokens, dropout: this.#dropout })
      if (countTargets(cut) === 0) throw allMasked(this.state.globalStep + 1, examples.length)
      return cut
    })
    const targets = countTargets(batches)
    for (const [index, batch] of batches.entries()) {
      if (batch.targetIds.length > 0) this.#microBatch(batch, index, batch.targetIds.length / targets)
      await this.#holdBack.queued()
      if (signal?.aborted && index < batches.length - 1) {
        this.#optimizer.zeroGrad()
        await this.#fromOutside(() => signal.throwIfAborted())
      }
      this.#throughput.tokens += batch.inputIds.length
    }
    this.#optimizer.learningRate = learningRate
    await this.#optimizer.step()
    this.#optimizer.zeroGrad()
    this.#throughput.samples += examples.length
  }

  #microBatch(batch: BatchData, index: number, share: number): void {
    const { model, adapter } = this.options.trainee
    const { seed, gradientCheckpointing } = this.options.args
    scope(() => {
      const key = Int32Array.of(seed | 0, Math.floor(seed / 2 ** 32) | 0, this.state.globalStep, index)
      const { loss } = model.forward(batch, {
        adapter: adapter?.name ?? null,
        gradientCheckpointing: recomputesActivations(gradientCheckpointing, model, batch.inputIds.length),
        dropoutRng: Tensor.from(model.device, key, [4], 'int32'),
      })
      model.device.ops.sum(this.#lossSum, loss!.tensor, share, 1)
      loss!.backward(share)
      loss!.dispose()
    })
  }

  /** The one place that waits for the device in an ordinary step. */
  async #logLoss(step: StepEvent): Promise<void> {
    const { state } = this
    const sum = await this.#readLoss()
    const event: LogEvent = {
      ...step,
      loss: sum / state.windowSteps,
      gradNorm: await this.#optimizer.gradNorm.item(),
      ...this.#throughput.take(),
    }
    state.loggedLoss += sum
    state.windowLoss = 0
    state.windowSteps = 0
    this.#lossSum.device.ops.fill(this.#lossSum, 0)
    await this.#record(event)
    this.#progress.log(event)
    await this.#fromOutside(() => this.options.observer.log(event))
  }

  /** @returns whether the patience with a metric that does not improve is exhausted */
  async #evaluate(): Promise<boolean> {
    const { observer, evaluate, signal } = this.options
    const { globalStep: step, epoch } = this.state
    this.#throughput.pause()
    const metrics = await this.#fromOutside(() => evaluate(step, signal))
    this.#throughput.resume()
    this.#lastMetrics = metrics
    const patienceIsOut = judge(this.state, metrics, this.options.args)
    const event = { step, epoch, metrics }
    await this.#record(event)
    this.#progress.evaluate(event)
    await this.#fromOutside(() => observer.evaluate(event))
    return patienceIsOut
  }

  #saveIsDue(endsEpoch: boolean, last: boolean): boolean {
    const { saveStrategy, saveSteps } = this.options.args
    const { globalStep, bestGlobalStep } = this.state
    if (saveStrategy === 'best') return bestGlobalStep === globalStep
    return isDue(saveStrategy, globalStep, saveSteps, endsEpoch) || (saveStrategy === 'steps' && last)
  }

  async #save(): Promise<void> {
    const { args, observer } = this.options
    const { state } = this
    this.#throughput.pause()
    state.windowLoss = await this.#readLoss()
    if (state.bestGlobalStep === state.globalStep) {
      state.bestModelCheckpoint = join(args.outputDir, `checkpoint-${state.globalStep}`)
    }
    const { trainee } = this.options
    const path = await writeCheckpoint(args.outputDir, { state, setup: this.setup, optimizer: this.#optimizer, trainee })
    this.#savedStep = state.globalStep
    this.#lastCheckpoint = path
    await this.#writeState()
    if (args.saveTotalLimit) await rotateCheckpoints(args.outputDir, args.saveTotalLimit, state)
    this.#throughput.resume()
    await this.#fromOutside(() => observer.save({ step: state.globalStep, path }))
  }

  async #finish(stopReason: StopReason, firstStep: number, seconds: number): Promise<TrainOutput> {
    const { args, observer, trainee } = this.options
    const { state } = this
    await this.#fromOutside(() => observer.assertSound())
    const wanted = stopReason === 'stopped' || (stopReason === 'early-stopping' && args.saveStrategy !== 'no')
    if (wanted && state.globalStep > 0 && this.#savedStep !== state.globalStep) await this.#save()
    state.windowLoss = await this.#readLoss()
    if (args.loadBestModelAtEnd && state.bestModelCheckpoint) {
      await loadParameters(state.bestModelCheckpoint, trainee.parameters)
    }
    const steps = state.globalStep - firstStep
    const metrics: Metrics = {
      train_loss: meanLoss(state),
      train_runtime: seconds,
      train_samples_per_second: (steps * samplesPerStep(args)) / seconds,
      train_steps_per_second: steps / seconds,
      ...this.#reportTruncation(),
    }
    if (stopReason === 'completed') await this.#record({ step: state.globalStep, epoch: state.epoch, metrics })
    await this.#writeState()
    const output: TrainOutput = {
      stopReason,
      globalStep: state.globalStep,
      trainLoss: meanLoss(state),
      metrics: { ...this.#lastMetrics, ...metrics },
      lastCheckpoint: this.#lastCheckpoint,
    }
    this.#progress.stop()
    await observer.end(output)
    return output
  }

  #reportTruncation(): Metrics {
    const { examples, truncated, withoutLabels } = this.options.collator.truncation ?? {
      examples: 0,
      truncated: 0,
      withoutLabels: 0,
    }
    if (truncated === 0) return {}
    const lost = withoutLabels ? `, ${withoutLabels} of them lost their last label by it and taught nothing` : ''
    this.print(`${truncated} of ${examples} samples were longer than maxLength${lost}`)
    return { train_samples_truncated: truncated, train_samples_without_labels: withoutLabels }
  }

  /** Reads the loss since the last log. @throws QuantuneError `ERR_NOT_FINITE` */
  async #readLoss(): Promise<number> {
    const { globalStep, windowSteps } = this.state
    const sum = await this.#lossSum.item()
    if ((await this.#optimizer.notFinite.item()) === 0 && Number.isFinite(sum)) return sum
    const steps = windowSteps > 1 ? `one of the steps ${globalStep - windowSteps + 1} to ${globalStep}` : `step ${globalStep}`
    const last = this.#lastCheckpoint ? `; the last checkpoint is ${this.#lastCheckpoint}` : '; there is no checkpoint yet'
    throw new QuantuneError('ERR_NOT_FINITE', `the loss or its gradient was not finite in ${steps}${last}`, {
      details: {
        step: globalStep,
        loss: sum,
        gradNorm: await this.#optimizer.gradNorm.item(),
        lastCheckpoint: this.#lastCheckpoint,
      },
    })
  }

  async #record(entry: LogEntry): Promise<void> {
    this.state.logHistory.push(entry)
    await this.#log.append(logLine(entry))
  }

  async #writeState(): Promise<void> {
    const { steps } = this.#optimizer.stateDict()
    await writeJsonAtomically(join(this.options.args.outputDir, STATE_FILE), stateToJson(this.state, this.setup, steps))
  }

  /** Calls what the user or the data brought in; its failure leaves the training itself sound. */
  async #fromOutside<R>(call: () => R | Promise<R>): Promise<R> {
    try {
      return await call()
    } catch (error) {
      this.#sound = !isOfTheDevice(error)
      throw error
    }
  }

  async #saveAfterError(): Promise<void> {
    if (!this.#sound || this.state.globalStep === 0) return
    try {
      if (this.#savedStep !== this.state.globalStep) await this.#save()
      else await this.#writeState()
    } catch {
      // The first error is the one to report; the previous checkpoint is intact.
    }
  }

  async #close(): Promise<void> {
    this.#progress.stop()
    this.#optimizer.dispose()
    this.#lossSum.dispose()
    for (const parameter of this.options.trainee.parameters) parameter.dropGradient()
    await this.#feed?.close()
  }
}

function setupOf<T>({ args, trainee }: RunOptions<T>, feed: Feed<T>): RunSetup {
  const { device } = trainee.model
  return {
    seed: args.seed,
    strategy: feed.strategy,
    samplesPerStep: samplesPerStep(args),
    datasetLength: feed.length,
    device: device.name,
    variant: device.variant,
  }
}

/** The folder of a training may have been moved since. */
function moveBest(state: RunState, checkpoint: string): void {
  const best = state.bestModelCheckpoint
  state.bestModelCheckpoint = best && join(dirname(checkpoint), basename(best))
}

function totalSteps<T>(args: ResolvedArguments, feed: Feed<T>): number {
  if (args.maxSteps > 0 || feed.length === null) return args.maxSteps
  return Math.ceil(args.numTrainEpochs * Math.ceil(feed.length / samplesPerStep(args)))
}

function isDue(strategy: string, step: number, every: number, endsEpoch = false): boolean {
  return (strategy === 'steps' && step % every === 0) || (strategy === 'epoch' && endsEpoch)
}

const deviceErrors = new Set(['ERR_NOT_FINITE', 'ERR_DEVICE', 'ERR_OUT_OF_MEMORY', 'ERR_DISPOSED'])
const isOfTheDevice = (error: unknown) => error instanceof QuantuneError && deviceErrors.has(error.code)

function allMasked(step: number, samples: number): QuantuneError {
  const hint = '; ChatCollator.explain shows where there is loss'
  return new QuantuneError(
    'ERR_ALL_LABELS_MASKED',
    `step ${step}: none of its ${samples} samples has a labelled token${hint}`,
    {
      details: { step, samples },
    },
  )
}
