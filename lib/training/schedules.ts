import { z } from 'zod'
import { invalidArgument } from '../errors.js'
import { nearest, parseOptions } from '../options.js'

/** The factor on the learning rate of step `step` (the first is 0) of `total`. */
export type Schedule = (step: number, total: number) => number

/** The schedules of transformers that depend on the step alone. */
export type SchedulerType =
  | 'linear'
  | 'cosine'
  | 'cosine_with_restarts'
  | 'polynomial'
  | 'constant'
  | 'constant_with_warmup'
  | 'inverse_sqrt'
  | 'cosine_with_min_lr'
  | 'cosine_warmup_with_min_lr'
  | 'warmup_stable_decay'

/** What single schedules can be told, under transformers' names in camelCase. */
export interface SchedulerKwargs {
  /** Waves of the cosine (`cosine`, `cosine_with_min_lr`, `cosine_warmup_with_min_lr`, `warmup_stable_decay`: 0.5), restarts (`cosine_with_restarts`: 1). */
  numCycles?: number
  /** `polynomial`: the learning rate it ends at (1e-7). */
  lrEnd?: number
  /** `polynomial`: 1 is linear (1). */
  power?: number
  /** `inverse_sqrt`: the time scale in steps (the warm-up, or 10,000 without). */
  timescale?: number
  /** `cosine_with_min_lr`, `cosine_warmup_with_min_lr`: the lowest learning rate; one of `minLr` and `minLrRate` is needed. */
  minLr?: number
  /** The lowest learning rate as a share of `learningRate`. */
  minLrRate?: number
  /** `cosine_warmup_with_min_lr`: the share that the warm-up starts from. */
  warmupLrRate?: number
  /** `warmup_stable_decay`: steps of the decay; needed. */
  numDecaySteps?: number
  /** `warmup_stable_decay`: steps between (what warm-up and decay leave). */
  numStableSteps?: number
  /** `warmup_stable_decay`: the curve up ('linear'). */
  warmupType?: 'linear' | 'cosine' | '1-sqrt'
  /** `warmup_stable_decay`: the curve down ('cosine'). */
  decayType?: 'linear' | 'cosine' | '1-sqrt'
  /** `warmup_stable_decay`: the lowest share of `learningRate` (0). */
  minLrRatio?: number
}

export interface ScheduleOptions {
  /** The highest learning rate. */
  learningRate: number
  /** Steps of warm-up; a number below 1 is a share of `totalSteps`, rounded up. */
  warmupSteps: number
  totalSteps: number
  kwargs?: SchedulerKwargs
}

/** Everything a curve may depend on; steps are absolute. */
interface Curve extends SchedulerKwargs {
  warmup: number
  total: number
  learningRate: number
}

const positive = z.number().positive()
const share = z.number().min(0).max(1)
const shape = z.enum(['linear', 'cosine', '1-sqrt'])
const steps = z.int().min(0)

/** The options each schedule takes. */
const known: Record<SchedulerType, z.ZodObject> = {
  linear: z.object({}),
  cosine: z.object({ numCycles: positive.optional() }),
  cosine_with_restarts: z.object({ numCycles: positive.optional() }),
  polynomial: z.object({ lrEnd: z.number().min(0).optional(), power: positive.optional() }),
  constant: z.object({}),
  constant_with_warmup: z.object({}),
  inverse_sqrt: z.object({ timescale: positive.optional() }),
  cosine_with_min_lr: z.object({
    numCycles: positive.optional(),
    minLr: z.number().min(0).optional(),
    minLrRate: share.optional(),
  }),
  cosine_warmup_with_min_lr: z.object({
    numCycles: positive.optional(),
    minLr: z.number().min(0).optional(),
    minLrRate: share.optional(),
    warmupLrRate: share.optional(),
  }),
  warmup_stable_decay: z.object({
    numDecaySteps: steps,
    numStableSteps: steps.optional(),
    warmupType: shape.optional(),
    decayType: shape.optional(),
    minLrRatio: share.optional(),
    numCycles: positive.optional(),
  }),
}

/**
 * The learning rate of each step, as transformers' `get_scheduler` gives it: the first step with warm-up has learning rate 0.
 *
 * @param type - a name, or a function of (step, total), which then stands for the whole schedule, warm-up included
 * @throws QuantuneError `ERR_INVALID_ARGUMENT` for an unknown name, or for the schedules that follow a metric
 */
export function learningRateSchedule(type: SchedulerType | Schedule, options: ScheduleOptions): (step: number) => number {
  const { learningRate, totalSteps } = options
  if (typeof type === 'function') return (step) => learningRate * checked(type(step, totalSteps), step)
  if (!Object.hasOwn(curves, type)) throw unknownSchedule(type)
  const kwargs = parseOptions(known[type], options.kwargs, `lrSchedulerKwargs of "${type}"`) as SchedulerKwargs
  const curve: Curve = { ...kwargs, warmup: warmupSteps(options), total: totalSteps, learningRate }
  if (type.endsWith('min_lr')) curve.minLrRate = minLrRate(type, kwargs, learningRate)
  if (type === 'polynomial' && learningRate <= (kwargs.lrEnd ?? 1e-7)) {
    throw invalidArgument(
      `lrSchedulerKwargs.lrEnd: expected less than learningRate, ${learningRate}, received ${kwargs.lrEnd ?? 1e-7}`,
    )
  }
  const factor = curves[type]
  return (step) => learningRate * factor(step, curve)
}

/** A number below 1 is a share of all steps, rounded up, as in transformers. */
export function warmupSteps({ warmupSteps, totalSteps }: Pick<ScheduleOptions, 'warmupSteps' | 'totalSteps'>): number {
  return warmupSteps >= 1 ? Math.trunc(warmupSteps) : Math.ceil(totalSteps * warmupSteps)
}

const rising = (step: number, warmup: number) => step / Math.max(1, warmup)
const progressOf = (step: number, { warmup, total }: Curve) => (step - warmup) / Math.max(1, total - warmup)
const halfCosine = (waves: number, progress: number) => 0.5 * (1 + Math.cos(Math.PI * waves * 2 * progress))

const curves: Record<SchedulerType, (step: number, curve: Curve) => number> = {
  constant: () => 1,
  constant_with_warmup: (step, { warmup }) => (step < warmup ? rising(step, warmup) : 1),
  linear: (step, { warmup, total }) =>
    step < warmup ? rising(step, warmup) : Math.max(0, (total - step) / Math.max(1, total - warmup)),
  cosine: (step, curve) => cosine(step, { ...curve, minLrRate: 0 }),
  cosine_with_min_lr: cosine,
  cosine_with_restarts(step, curve) {
    if (step < curve.warmup) return rising(step, curve.warmup)
    const progress = progressOf(step, curve)
    return progress >= 1 ? 0 : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (((curve.numCycles ?? 1) * progress) % 1))))
  },
  polynomial(step, { warmup, total, learningRate, lrEnd = 1e-7, power = 1 }) {
    if (step < warmup) return rising(step, warmup)
    if (step > total || total === warmup) return lrEnd / learningRate
    const remaining = 1 - (step - warmup) / (total - warmup)
    return ((learningRate - lrEnd) * remaining ** power + lrEnd) / learningRate
  },
  inverse_sqrt(step, { warmup, timescale = warmup || 10_000 }) {
    return step < warmup ? rising(step, warmup) : 1 / Math.sqrt((step + timescale - warmup) / timescale)
  },
  cosine_warmup_with_min_lr(step, { warmup, total, numCycles = 0.5, minLrRate = 0, warmupLrRate }) {
    if (step < warmup) {
      if (warmupLrRate === undefined) return (step + 1) / Math.max(1, warmup)
      return warmupLrRate + ((1 - warmupLrRate) * step) / Math.max(1, warmup - 1)
    }
    const progress = (step - warmup + 1) / Math.max(1, total - warmup)
    return Math.max(0, halfCosine(numCycles, progress) * (1 - minLrRate) + minLrRate)
  },
  warmup_stable_decay(step, curve) {
    const {
      warmup,
      total,
      numDecaySteps = 0,
      minLrRatio = 0,
      numCycles = 0.5,
      warmupType = 'linear',
      decayType = 'cosine',
    } = curve
    const stable = curve.numStableSteps ?? total - warmup - numDecaySteps
    const above = (factor: number) => Math.max(0, factor * (1 - minLrRatio) + minLrRatio)
    if (step < warmup) return above(climb[warmupType](rising(step, warmup)))
    if (step < warmup + stable) return 1
    if (step >= warmup + stable + numDecaySteps) return minLrRatio
    return above(fall[decayType]((step - warmup - stable) / Math.max(1, numDecaySteps), numCycles))
  },
}

const climb = {
  linear: (progress: number) => progress,
  cosine: (progress: number) => 0.5 * (1 - Math.cos(Math.PI * progress)),
  '1-sqrt': (progress: number) => 1 - Math.sqrt(1 - progress),
}

const fall = {
  linear: (progress: number) => 1 - progress,
  cosine: (progress: number, waves: number) => halfCosine(waves, progress),
  '1-sqrt': (progress: number) => 1 - Math.sqrt(progress),
}

function cosine(step: number, curve: Curve): number {
  if (step < curve.warmup) return rising(step, curve.warmup)
  const lowest = curve.minLrRate ?? 0
  return Math.max(0, halfCosine(curve.numCycles ?? 0.5, progressOf(step, curve)) * (1 - lowest) + lowest)
}

function minLrRate(type: string, { minLr, minLrRate }: SchedulerKwargs, learningRate: number): number {
  if ((minLr === undefined) === (minLrRate === undefined)) {
    throw invalidArgument(`lrSchedulerKwargs of "${type}": expected either minLr or minLrRate`, { minLr, minLrRate })
  }
  return minLrRate ?? minLr! / learningRate
}

function checked(factor: number, step: number): number {
  if (typeof factor === 'number' && Number.isFinite(factor) && factor >= 0) return factor
  throw invalidArgument(`lrSchedulerType: expected the function to return a number >= 0 for step ${step}, received ${factor}`)
}

function unknownSchedule(type: string) {
  const names = Object.keys(curves)
  if (type === 'reduce_lr_on_plateau' || type === 'greedy') {
    return invalidArgument(
      `lrSchedulerType: "${type}" follows a metric, which is not supported; take ${names.join(', ')} or a function of (step, total)`,
      { type },
    )
  }
  const suggestion = nearest(type, names)
  const hint = suggestion ? `; did you mean "${suggestion}"?` : ''
  return invalidArgument(`lrSchedulerType: expected ${names.join(', ')} or a function, received "${type}"${hint}`, {
    type,
    suggestion,
  })
}
