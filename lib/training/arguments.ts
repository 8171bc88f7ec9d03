import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { parseOptions } from '../options.js'
import type { SamplingStrategy } from './samplers.js'
import type { Schedule, SchedulerKwargs, SchedulerType } from './schedules.js'

/** When something happens: never, every so many steps, or after each epoch. */
export type IntervalStrategy = 'no' | 'steps' | 'epoch'

/** How a training runs. Names and defaults are those of transformers' `TrainingArguments`, in camelCase. */
export interface TrainingArguments {
  /** Folder of the checkpoints, `log.jsonl` and `trainer_state.json`. Default: `trainer_output`. */
  outputDir?: string
  /** Optimizer steps; overrides `numTrainEpochs` when > 0. Default: -1. */
  maxSteps?: number
  /** Default: 3. */
  numTrainEpochs?: number
  /** Samples of a micro-batch. Default: 8. */
  perDeviceTrainBatchSize?: number
  /** Default: 8. */
  perDeviceEvalBatchSize?: number
  /** Micro-batches of an optimizer step; the loss is the mean over the labelled tokens of them all. Default: 1. */
  gradientAccumulationSteps?: number
  /**
   * Cuts the samples of an optimizer step (always perDeviceTrainBatchSize x gradientAccumulationSteps) into micro-batches of at most so
   * many tokens, a shared prefix counted once; a longer sample stands alone. Bounds evaluation batches too. Default: by samples.
   */
  maxTokensPerBatch?: number
  /** Default: 5e-5. */
  learningRate?: number
  /** A name, or a function of (step, total) that gives a factor on the learning rate, warm-up included. Default: 'linear'. */
  lrSchedulerType?: SchedulerType | Schedule
  /** What the schedule can be told, such as `{ numCycles: 2 }`. */
  lrSchedulerKwargs?: SchedulerKwargs
  /** Steps in which the learning rate climbs from 0; below 1 a share of all steps. Default: 0. */
  warmupSteps?: number
  /** Not applied to biases and norms. Default: 0. */
  weightDecay?: number
  /** Default: 0.9. */
  adamBeta1?: number
  /** Default: 0.999. */
  adamBeta2?: number
  /** Default: 1e-8. */
  adamEpsilon?: number
  /** Gradients are scaled to at most this global norm; 0: never. Default: 1. */
  maxGradNorm?: number
  /** Recompute activations in the backward pass; 'auto': when a step would not fit into memory otherwise. Default: false. */
  gradientCheckpointing?: boolean | 'auto'
  /** Steps between two logs, each of which waits for the device. Default: 500. */
  loggingSteps?: number
  /** Log the first step too. Default: false. */
  loggingFirstStep?: boolean
  /** Default: 'no'. */
  evalStrategy?: IntervalStrategy
  /** Default: `loggingSteps`. */
  evalSteps?: number
  /** Evaluate before the first step. Default: false. */
  evalOnStart?: boolean
  /** 'best': when `metricForBestModel` has improved. Default: 'steps'; with `loadBestModelAtEnd` what `evalStrategy` is. */
  saveStrategy?: IntervalStrategy | 'best'
  /** Default: 500; with `loadBestModelAtEnd` what `evalSteps` is. */
  saveSteps?: number
  /** Older checkpoints are deleted, never the best one. Default: all are kept. */
  saveTotalLimit?: number
  /** After training, return to the checkpoint with the best `metricForBestModel`. Default: false. */
  loadBestModelAtEnd?: boolean
  /** With or without `eval_`. Default: 'eval_loss'. */
  metricForBestModel?: string
  /** Default: false for a metric whose name ends in `loss`, else true. */
  greaterIsBetter?: boolean
  /** Stop after so many evaluations in a row without improvement of `metricForBestModel`. Default: never. */
  earlyStoppingPatience?: number
  /** What counts as improvement. Default: 0. */
  earlyStoppingThreshold?: number
  /** Default: 'random'; data sets without a length are always 'sequential'. */
  trainSamplingStrategy?: SamplingStrategy
  /** Of the order of samples and of dropout. Default: 42. */
  seed?: number
  /** No progress bar, no lines. Default: false. */
  disableProgress?: boolean
}

const count = z.int().min(1)
const schedule = z.custom<SchedulerType | Schedule>(
  (value) => typeof value === 'string' || typeof value === 'function',
  'expected the name of a schedule or a function of (step, total)',
)

const schema = z.object({
  outputDir: z.string().min(1).default('trainer_output'),
  maxSteps: z.int().min(-1).default(-1),
  numTrainEpochs: z.number().positive().default(3),
  perDeviceTrainBatchSize: count.default(8),
  perDeviceEvalBatchSize: count.default(8),
  gradientAccumulationSteps: count.default(1),
  maxTokensPerBatch: count.optional(),
  learningRate: z.number().min(0).default(5e-5),
  lrSchedulerType: schedule.default('linear'),
  lrSchedulerKwargs: z.looseObject({}).optional(),
  warmupSteps: z.number().min(0).default(0),
  weightDecay: z.number().min(0).default(0),
  adamBeta1: z.number().min(0).lt(1).default(0.9),
  adamBeta2: z.number().min(0).lt(1).default(0.999),
  adamEpsilon: z.number().positive().default(1e-8),
  maxGradNorm: z.number().min(0).default(1),
  gradientCheckpointing: z.union([z.boolean(), z.literal('auto')]).default(false),
  loggingSteps: count.default(500),
  loggingFirstStep: z.boolean().default(false),
  evalStrategy: z.enum(['no', 'steps', 'epoch']).default('no'),
  evalSteps: count.optional(),
  evalOnStart: z.boolean().default(false),
  saveStrategy: z.enum(['no', 'steps', 'epoch', 'best']).optional(),
  saveSteps: count.optional(),
  saveTotalLimit: count.optional(),
  loadBestModelAtEnd: z.boolean().default(false),
  metricForBestModel: z.string().min(1).optional(),
  greaterIsBetter: z.boolean().optional(),
  earlyStoppingPatience: count.optional(),
  earlyStoppingThreshold: z.number().min(0).default(0),
  trainSamplingStrategy: z.enum(['random', 'sequential', 'group_by_length', 'group_by_prefix']).optional(),
  seed: z.int().min(0).default(42),
  disableProgress: z.boolean().default(false),
})

type Parsed = z.output<typeof schema>

/** Checked arguments with every default filled in. */
export type ResolvedArguments = Omit<Parsed, 'lrSchedulerKwargs' | 'trainSamplingStrategy'> &
  Required<Pick<Parsed, 'evalSteps' | 'saveStrategy' | 'saveSteps' | 'metricForBestModel' | 'greaterIsBetter'>> & {
    lrSchedulerKwargs: SchedulerKwargs | undefined
    /** undefined: not chosen by the caller. */
    trainSamplingStrategy: SamplingStrategy | undefined
  }

/** @throws QuantuneError `ERR_INVALID_ARGUMENT` for a wrong argument, or for two that contradict each other */
export function resolveArguments(args: TrainingArguments | undefined, hasEvalDataset: boolean): ResolvedArguments {
  const parsed = parseOptions(schema, args, 'TrainingArguments')
  const evalSteps = parsed.evalSteps ?? parsed.loggingSteps
  const followsEval = parsed.loadBestModelAtEnd
  const metric = parsed.metricForBestModel ?? 'loss'
  const resolved: ResolvedArguments = {
    ...parsed,
    lrSchedulerKwargs: parsed.lrSchedulerKwargs as SchedulerKwargs | undefined,
    trainSamplingStrategy: parsed.trainSamplingStrategy,
    evalSteps,
    saveStrategy: parsed.saveStrategy ?? (followsEval ? parsed.evalStrategy : 'steps'),
    saveSteps: parsed.saveSteps ?? (followsEval ? evalSteps : 500),
    metricForBestModel: metric.startsWith('eval_') ? metric : `eval_${metric}`,
    greaterIsBetter: parsed.greaterIsBetter ?? !metric.endsWith('loss'),
  }
  checkTogether(resolved, hasEvalDataset)
  return resolved
}

function checkTogether(args: ResolvedArguments, hasEvalDataset: boolean): void {
  const refuse = (message: string) => {
    throw invalidArgument(`TrainingArguments.${message}`)
  }
  const { evalStrategy, saveStrategy, evalSteps, saveSteps } = args
  if ((evalStrategy !== 'no' || args.evalOnStart) && !hasEvalDataset) {
    refuse(
      `${args.evalOnStart ? 'evalOnStart' : 'evalStrategy'}: expected an evalDataset or computeMetrics beside it, received neither`,
    )
  }
  if (args.earlyStoppingPatience && evalStrategy === 'no')
    refuse("earlyStoppingPatience: expected an evalStrategy, received 'no'")
  if (saveStrategy === 'best' && evalStrategy === 'no') refuse("saveStrategy: 'best' expects an evalStrategy, received 'no'")
  if (!args.loadBestModelAtEnd) return
  if (evalStrategy === 'no') refuse("loadBestModelAtEnd: expected an evalStrategy, received 'no'")
  if (saveStrategy !== 'best' && saveStrategy !== evalStrategy) {
    refuse(
      `loadBestModelAtEnd: expected saveStrategy to be 'best' or evalStrategy's '${evalStrategy}', received '${saveStrategy}'`,
    )
  }
  if (saveStrategy === 'steps' && saveSteps % evalSteps !== 0) {
    refuse(`loadBestModelAtEnd: expected saveSteps to be a multiple of evalSteps, ${evalSteps}, received ${saveSteps}`)
  }
}
