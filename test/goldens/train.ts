import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Parameter } from '../../lib/autograd/index.js'
import type { Model } from '../../lib/model/model.js'
import { AdamW } from '../../lib/training/optimizer.js'
import { learningRateSchedule } from '../../lib/training/schedules.js'
import { type ReferenceTensors, readReference } from '../support/reference-tensors.js'
import { batchOf, compareLogits } from './batch.js'
import { VALUE_TOLERANCE } from './forward.js'
import { misplaceScales } from './misplaced-scales.js'
import { type LoadOptions, loadModel, withModel } from './models.js'
import { agree, type Figure, Figures, type GoldenCase, gradientDeviation, type Outcome, valueDeviation } from './result.js'

const GRADIENT_TOLERANCE = 1e-4
const PARAMETER_TOLERANCE = 1e-4

const BLOCK_SIZE = 64

interface CaseFile {
  model: string
  steps: number
  learning_rate: number
  betas: [number, number]
  eps: number
  weight_decay: number
  warmup_steps: number
  max_grad_norm: number
  schedule: string
  losses: number[]
  grad_norms: number[]
}

const ADAPTER_TYPES = ['LORA']

/** `train/CASE`: loss and gradient norm per step, gradients of step 1, parameters after the last step, the merged model's logits. */
export function trainCases(folder: string): GoldenCase[] {
  const directory = join(folder, 'train')
  if (!existsSync(directory)) return []
  const cases = readdirSync(directory).filter((name) => existsSync(join(directory, name, 'case.json')))
  return cases.sort().map((caseName) => {
    const name = `train/${caseName}`
    const type = adapterType(join(directory, caseName))
    if (type && !ADAPTER_TYPES.includes(type)) return { name, missing: `adapters of type ${type} do not exist yet` }
    return { name, run: () => runCase(folder, caseName) }
  })
}

function adapterType(directory: string): string | null {
  const path = join(directory, 'adapter', 'adapter_config.json')
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')).peft_type as string) : null
}

/** The name of a case says how its base is quantized: `qlora_TYPE` or `qlora_TYPE_double`. */
function quantizationOf(caseName: string): LoadOptions['quantization'] {
  const match = /^qlora_(nf4|fp4)(_double)?/.exec(caseName)
  return match ? { type: match[1] as 'nf4' | 'fp4', blockSize: BLOCK_SIZE, doubleQuant: match[2] !== undefined } : 'none'
}

/** A quantized case that misses is tried again as bitsandbytes computes it; the line says so. */
async function runCase(folder: string, caseName: string): Promise<Outcome> {
  const figures = await runTraining(folder, caseName)
  if (agree(figures) || quantizationOf(caseName) === 'none') return { figures }
  let misplaced: string[] = []
  const again = await runTraining(folder, caseName, async (model) => {
    misplaced = await misplaceScales(model, BLOCK_SIZE)
  })
  if (misplaced.length === 0 || !agree(again)) return { figures }
  const loss = figures.find(({ what }) => what === 'loss')?.deviation.toExponential(1)
  const layers = [...new Set(misplaced.map((name) => name.split('.').at(-2)))].join(', ')
  return {
    figures: again,
    note: `with the scales of ${layers} misplaced as bitsandbytes does it on CPUs (in their places: loss ${loss})`,
  }
}

async function runTraining(folder: string, caseName: string, prepare?: (model: Model) => Promise<void>): Promise<Figure[]> {
  const directory = join(folder, 'train', caseName)
  const settings = JSON.parse(readFileSync(join(directory, 'case.json'), 'utf8')) as CaseFile
  const reference = await readReference(join(directory, 'case.safetensors'))
  return withModel(loadModel(folder, settings.model, { quantization: quantizationOf(caseName) }), async (model) => {
    await prepare?.(model)
    const figures = new Figures()
    const adapter = adapterType(directory) ? 'default' : null
    if (adapter) await model.loadAdapter(join(directory, 'adapter'), { name: adapter, trainable: true })
    else trainNamedParameters(model, reference)
    const parameters = new Map(model.trainableParameters(adapter).map((parameter) => [parameter.name, parameter]))
    await train(model, adapter, settings, reference, parameters, figures)
    await compareParameters(reference, parameters, figures)
    if (adapter) await compareMerged(model, adapter, directory, figures)
    return figures.all()
  })
}

/** Without an adapter, the parameters that have reference gradients are the trained ones. */
function trainNamedParameters(model: Model, reference: ReferenceTensors): void {
  for (const [name, parameter] of model.parameters()) parameter.requiresGrad = reference.has(`grad.${name}`)
}

async function train(
  model: Model,
  adapter: string | null,
  settings: CaseFile,
  reference: ReferenceTensors,
  parameters: ReadonlyMap<string, Parameter>,
  figures: Figures,
): Promise<void> {
  const batch = batchOf(reference, { labels: true })
  const optimizer = new AdamW(parameters.values(), {
    betas: settings.betas,
    eps: settings.eps,
    weightDecay: settings.weight_decay,
    maxGradNorm: settings.max_grad_norm,
  })
  const learningRate = learningRateSchedule(settings.schedule as 'linear', {
    learningRate: settings.learning_rate,
    warmupSteps: settings.warmup_steps,
    totalSteps: settings.steps,
  })
  for (let step = 0; step < settings.steps; step++) {
    const { loss } = model.forward(batch, { adapter })
    loss!.backward()
    figures.add('loss', valueDeviation([await loss!.item()], [settings.losses[step]!]), VALUE_TOLERANCE)
    loss!.dispose()
    if (step === 0) await compareGradients(reference, parameters, settings, figures)
    optimizer.learningRate = learningRate(step)
    await optimizer.step()
    const norm = await optimizer.gradNorm.item()
    figures.add('gradient norm', gradientDeviation([norm], [settings.grad_norms[step]!]), GRADIENT_TOLERANCE)
    optimizer.zeroGrad()
  }
  optimizer.dispose()
}

/** PEFT's names in memory carry the adapter's name. */
function inMemoryName(name: string): string {
  return name.replace('.default.', '.')
}

/**
 * The references' gradients are said to be those before clipping, but PyTorch clips in place, and where a norm exceeds the limit the
 * files hold what it left. Both are the same up to one factor, which the norm (compared by itself) gives: all tensors of a case must
 * agree with the one or all with the other.
 */
async function compareGradients(
  reference: ReferenceTensors,
  parameters: ReadonlyMap<string, Parameter>,
  settings: CaseFile,
  figures: Figures,
): Promise<void> {
  const clip = Math.min(1, settings.max_grad_norm / (settings.grad_norms[0]! + 1e-6))
  let [before, after] = [0, 0]
  for (const [name, { values }] of withPrefix(reference, 'grad.')) {
    const gradient = await parameters.get(inMemoryName(name))?.grad()
    const deviation = (factor: number) =>
      gradient
        ? gradientDeviation(
            gradient.map((g) => g * factor),
            values,
          )
        : Number.POSITIVE_INFINITY
    before = Math.max(before, deviation(1))
    after = Math.max(after, deviation(clip))
  }
  if (after < before) figures.add('clipped gradients', after, GRADIENT_TOLERANCE)
  else figures.add('gradients', before, GRADIENT_TOLERANCE)
}

async function compareParameters(
  reference: ReferenceTensors,
  parameters: ReadonlyMap<string, Parameter>,
  figures: Figures,
): Promise<void> {
  for (const [name, { values }] of withPrefix(reference, 'final.')) {
    const actual = await parameters.get(inMemoryName(name))?.data()
    figures.add('final parameters', actual ? valueDeviation(actual, values) : Number.POSITIVE_INFINITY, PARAMETER_TOLERANCE)
  }
}

/** The trained adapter merged into the base, and taken out again. */
async function compareMerged(model: Model, adapter: string, directory: string, figures: Figures): Promise<void> {
  const path = join(directory, 'merged.safetensors')
  if (!existsSync(path)) return
  const reference = await readReference(path)
  const before = await model
    .parameters()
    .get([...withPrefix(reference, 'weight.')][0]![0])!
    .data()
  await model.mergeAdapter(adapter)
  const { actual, expected } = await compareLogits(model, reference, adapter)
  figures.add('merged logits', valueDeviation(actual, expected), PARAMETER_TOLERANCE)
  for (const [name, { values }] of withPrefix(reference, 'weight.')) {
    const weight = await model.parameters().get(name)!.data()
    figures.add('merged weights', valueDeviation(weight, values), PARAMETER_TOLERANCE)
  }
  await model.unmergeAdapter(adapter)
  const after = await model
    .parameters()
    .get([...withPrefix(reference, 'weight.')][0]![0])!
    .data()
  figures.add('unmerged weights', valueDeviation(after, before), 0)
}

function* withPrefix(reference: ReferenceTensors, prefix: string): Generator<[string, { values: ArrayLike<number> }]> {
  for (const [name, tensor] of reference) if (name.startsWith(prefix)) yield [name.slice(prefix.length), tensor]
}
