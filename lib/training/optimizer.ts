import { z } from 'zod'
import type { Parameter } from '../autograd/parameter.js'
import { invalidArgument, QuantuneError } from '../errors.js'
import { parseOptions } from '../options.js'
import { keep, scope } from '../tensor/scope.js'
import { Tensor } from '../tensor/tensor.js'
import { HoldBack } from './hold-back.js'

export interface AdamWOptions {
  /** Default: 5e-5. */
  learningRate?: number
  /** Decay of the first and second moment. Default: [0.9, 0.999]. */
  betas?: readonly [number, number]
  /** Added to the root of the second moment. Default: 1e-8. */
  eps?: number
  /** Decoupled: a weight shrinks by learningRate x weightDecay a step. Default: 0. */
  weightDecay?: number
  /** Gradients are scaled so that their global L2 norm is at most this; 0: never. Default: 1. */
  maxGradNorm?: number
}

/** Parameters that are decayed differently from the rest. */
export interface ParameterGroup {
  parameters: Iterable<Parameter>
  weightDecay?: number
}

/** Something with a shape whose values can be read: a Tensor, or a tensor of a file. */
export interface Readable {
  readonly shape: readonly number[]
  data(): unknown
}

/** The optimizer's memory, for checkpoints. Keys of `tensors`: the parameter's name and `.exp_avg` or `.exp_avg_sq`. */
export interface OptimizerState {
  /** Updates so far of each parameter. */
  steps: Record<string, number>
  tensors: ReadonlyMap<string, Readable>
}

const schema = z.object({
  learningRate: z.number().min(0).default(5e-5),
  betas: z.tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)]).default([0.9, 0.999]),
  eps: z.number().positive().default(1e-8),
  weightDecay: z.number().min(0).default(0),
  maxGradNorm: z.number().min(0).default(1),
})

/** One trainable tensor with its moments, [the parameter's shape] float32. */
interface Slot {
  parameter: Parameter
  weightDecay: number
  first: Tensor
  second: Tensor
  step: number
}

/**
 * AdamW with decoupled weight decay (Loshchilov and Hutter 2019, "Decoupled weight decay regularization"), clipping by the global norm
 * before it; as `torch.optim.AdamW` after `clip_grad_norm_`. Parameters and moments are float32. A norm that is not finite changes
 * nothing and raises a flag, see {@link AdamW.assertFinite}.
 */
export class AdamW {
  /** The learning rate of the steps from now on. */
  learningRate: number
  /** float32 [1]: the global L2 norm of the gradients at the last step, before clipping. */
  readonly gradNorm: Tensor
  /** int32 [1]: 1 from the first step on whose norm was not finite. */
  readonly notFinite: Tensor
  readonly #options: z.output<typeof schema>
  readonly #slots: Slot[]
  readonly #holdBack: HoldBack
  #disposed = false

  /**
   * @param parameters - trainable ones, or groups of them
   * @throws QuantuneError `ERR_INVALID_ARGUMENT` for an empty list, a frozen parameter or one given twice
   */
  constructor(parameters: Iterable<Parameter | ParameterGroup>, options?: AdamWOptions) {
    this.#options = parseOptions(schema, options, 'AdamWOptions')
    this.learningRate = this.#options.learningRate
    const decays = decayOf(parameters, this.#options.weightDecay)
    const device = [...decays.keys()][0]!.value.device
    this.#holdBack = new HoldBack(device)
    this.gradNorm = keep(Tensor.zeros(device, [1], 'float32', 'optimizer'))
    this.notFinite = keep(Tensor.zeros(device, [1], 'int32', 'optimizer'))
    const moment = (of: Parameter) => keep(Tensor.zeros(device, of.shape, 'float32', 'optimizer'))
    this.#slots = [...decays].map(([parameter, weightDecay]) => {
      return { parameter, weightDecay, first: moment(parameter), second: moment(parameter), step: 0 }
    })
  }

  /**
   * Queues the clipping and the update; a parameter that no gradient has reached yet is left out. The promise holds a training loop
   * back: it resolves once at most two steps are outstanding.
   */
  async step(): Promise<void> {
    this.#assertLive()
    const gone = this.#slots.find(({ parameter }) => parameter.value.disposed)
    if (gone) throw new QuantuneError('ERR_DISPOSED', `AdamW.step: parameter "${gone.parameter.name}" was disposed of`)
    const ready = this.#slots.filter(({ parameter }) => parameter.gradient !== null)
    if (ready.length === 0) throw invalidArgument('AdamW.step: no parameter has a gradient; call backward first')
    const { ops } = this.gradNorm.device
    scope(() => {
      ops.grad_norm(
        this.gradNorm,
        ready.map(({ parameter }) => parameter.gradient!),
      )
      for (const slots of alike(ready)) this.#update(slots)
    })
    await this.#holdBack.queued()
  }

  /** One operation for slots that differ in nothing but their tensors. */
  #update(slots: Slot[]): void {
    const { betas, eps, maxGradNorm } = this.#options
    for (const slot of slots) slot.step++
    this.gradNorm.device.ops.adamw(
      slots.map(({ parameter }) => parameter.value),
      slots.map(({ parameter }) => parameter.gradient!),
      slots.map(({ first }) => first),
      slots.map(({ second }) => second),
      this.gradNorm,
      this.notFinite,
      this.learningRate,
      betas[0],
      betas[1],
      eps,
      slots[0]!.weightDecay,
      maxGradNorm,
      slots[0]!.step,
    )
  }

  /** Queues zeroes into all gradients. */
  zeroGrad(): void {
    this.#assertLive()
    const gradients = this.#slots.map(({ parameter }) => parameter.gradient).filter((gradient) => gradient !== null)
    if (gradients.length) this.gradNorm.device.ops.fill_list(gradients, 0)
  }

  /** @throws QuantuneError `ERR_NOT_FINITE` if a step so far had a gradient norm that is NaN or infinite */
  async assertFinite(): Promise<void> {
    if ((await this.notFinite.item()) === 0) return
    throw new QuantuneError('ERR_NOT_FINITE', 'the gradient norm was not finite; that step changed no parameter', {
      details: { gradNorm: await this.gradNorm.item() },
    })
  }

  /** Names and moments; the tensors are the live ones (as in PyTorch), so read them before the next step. */
  stateDict(): { steps: Record<string, number>; tensors: Map<string, Tensor> } {
    this.#assertLive()
    return {
      steps: Object.fromEntries(this.#slots.map(({ parameter, step }) => [parameter.name, step])),
      tensors: new Map(this.#slots.flatMap((slot) => momentsOf(slot))),
    }
  }

  /**
   * Takes over a state, reading one tensor at a time.
   * @throws QuantuneError `ERR_INVALID_ARGUMENT` where the state is of other parameters; nothing is changed then
   */
  async loadStateDict({ steps, tensors }: OptimizerState): Promise<void> {
    this.#assertLive()
    const moments = this.#slots.flatMap((slot) => momentsOf(slot))
    for (const [key, { shape }] of moments) {
      const saved = tensors.get(key)
      if (saved?.shape.join() === shape.join()) continue
      const found = saved ? `shape [${saved.shape.join(', ')}]` : 'nothing'
      throw invalidArgument(`optimizer state: expected "${key}" with shape [${shape.join(', ')}], found ${found}`, { key })
    }
    const unknown = this.#slots.find(({ parameter }) => !Number.isInteger(steps[parameter.name]))
    if (unknown) throw invalidArgument(`optimizer state: the number of steps of "${unknown.parameter.name}" is missing`)
    for (const [key, moment] of moments) moment.write((await tensors.get(key)!.data()) as Float32Array)
    for (const slot of this.#slots) slot.step = steps[slot.parameter.name]!
  }

  /** Frees the moments; the parameters and their gradients belong to the model. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    for (const { first, second } of this.#slots) {
      first.dispose()
      second.dispose()
    }
    this.gradNorm.dispose()
    this.notFinite.dispose()
  }

  #assertLive(): void {
    if (this.#disposed) throw new QuantuneError('ERR_DISPOSED', 'this AdamW has been disposed of')
  }
}

const momentsOf = ({ parameter, first, second }: Slot): [string, Tensor][] => [
  [`${parameter.name}.exp_avg`, first],
  [`${parameter.name}.exp_avg_sq`, second],
]

function decayOf(parameters: Iterable<Parameter | ParameterGroup>, fallback: number): Map<Parameter, number> {
  const decays = new Map<Parameter, number>()
  for (const entry of parameters) {
    const group: ParameterGroup = 'parameters' in entry ? entry : { parameters: [entry] }
    for (const parameter of group.parameters) {
      if (!parameter.requiresGrad) throw invalidArgument(`AdamW: ${parameter.name} is frozen`, { parameter: parameter.name })
      if (decays.has(parameter)) throw invalidArgument(`AdamW: ${parameter.name} is given twice`, { parameter: parameter.name })
      decays.set(parameter, group.weightDecay ?? fallback)
    }
  }
  if (decays.size === 0) throw invalidArgument('AdamW: expected at least one trainable parameter, received none')
  return decays
}

/** Slots with the same decay and number of steps, which one operation can update. */
function alike(slots: readonly Slot[]): Slot[][] {
  const groups = new Map<string, Slot[]>()
  for (const slot of slots) {
    const key = `${slot.weightDecay} ${slot.step}`
    const group = groups.get(key)
    if (group) group.push(slot)
    else groups.set(key, [slot])
  }
  return [...groups.values()]
}
