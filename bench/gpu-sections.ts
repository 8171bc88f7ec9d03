/** What is measured on a GPU: the shape of Llama 3 8B with random weights, in bfloat16. */
import { probe, whyRefused } from '../lib/tensor/probe.js'
import { ours, type Row, type Section, type Settings } from './sections.js'

/** Operations of a training step, for each token: forward, and the gradients of what each layer was given. */
const TRAINING_GFLOP = 30

interface GpuSettings {
  device: string
  /** Shapes that only show that everything runs. */
  tiny: boolean
}

type Sections = Record<string, (settings: Settings) => Section>

/** Why the device cannot be measured; empty when it can. */
export async function refusalOf(device: string): Promise<string> {
  if (!device.startsWith('cuda')) return 'it is no GPU; without --device the sections of the CPU are run'
  return (await whyRefused(device)) ?? ''
}

/** "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0" */
export async function describeGpu(device: string): Promise<{ gpu: string; compute: string }> {
  const [backend, index = '0'] = device.split(':') as [string, string?]
  const { driver, devices } = await probe(backend)
  const { name, compute } = devices.find((one) => String(one.index) === index)!
  return { gpu: `${name}, compute capability ${compute}, driver for CUDA ${driver}`, compute }
}

/** The sections of a GPU; each in processes of its own, so that one is done with the memory before the next begins. */
export function gpuSections({ device, tiny }: GpuSettings): Sections {
  const shape = ['--device', device, '--dtype', 'bfloat16', '--shape', tiny ? 'tiny' : 'llama3-8b']
  return {
    kernels({ peers }) {
      const python = peers.python ? ['--peers', peers.python] : []
      const trial = ours('kernels/cuda.js', '--device', device, '--shapes', tiny ? 'tiny' : 'full', ...python)
      return { title: "Kernels at Llama 3 8B's shapes, bfloat16", trials: [trial], rows: trial.rows! }
    },

    training() {
      const [batch, tokens] = tiny ? [1, 64] : [8, 2048]
      const sizes = (sequences: number) => ['--batch', String(sequences), '--seq', String(tokens), '--steps', tiny ? '1' : '5']
      const train = (...more: string[]) => ours('train/lora.js', ...shape, ...more)
      const [whole, how] = eitherOf(
        [() => train(...sizes(batch)), ''],
        [() => train(...sizes(batch), '--checkpointing'), ', activations recomputed'],
      )
      const lean = train(...sizes(1), '--checkpointing')
      const rate = (trial: typeof whole) => trial.figures.tokensPerSecond!
      return {
        title: `LoRA training on NF4 weights, r = 16 on all linear layers, ${tiny ? 'tiny' : 'shape of Llama 3 8B'}`,
        trials: [whole, lean],
        rows: [
          { what: `training, ${batch} x ${tokens} tokens${how}`, unit: 'tokens/s', ours: rate(whole) },
          mark(`training, ${batch} x ${tokens} tokens${how}`, 'TFLOP/s', (rate(whole) * TRAINING_GFLOP) / 1e3, 300),
          { what: `1 x ${tokens} tokens, activations recomputed`, unit: 'tokens/s', ours: rate(lean) },
          {
            ...mark(`peak of a step's tensors, 1 x ${tokens} tokens, recomputed`, 'GB', lean.figures.devicePeakGigabytes!, 8),
            smallerIsBetter: true,
          },
        ],
      }
    },

    generation() {
      const tokens = ['--prompt', tiny ? '32' : '512', '--new', tiny ? '4' : '128']
      const greedy = ours('generate/generate.js', ...shape, ...tokens)
      const beams = ours('generate/generate.js', ...shape, ...tokens, '--beams', '10')
      return {
        title: `Generation, NF4 weights, ${tiny ? 'tiny' : 'shape of Llama 3 8B'}`,
        trials: [greedy, beams],
        rows: [
          { what: 'prefill', unit: 'tokens/s', ours: greedy.figures.prefillTokensPerSecond! },
          mark('decoding, one stream', 'tokens/s', greedy.figures.decodeTokensPerSecond!, 250),
          { what: '10 beams, one step', unit: 'ms', ours: beams.figures.millisecondsPerStep!, smallerIsBetter: true },
        ],
      }
    },
  }
}

/** What the first gives, or, where that fails (for want of memory: it has said so), the second; and which. */
function eitherOf<T>([first, name]: [() => T, string], [second, other]: [() => T, string]): [T, string] {
  try {
    return [first(), name]
  } catch {
    return [second(), other]
  }
}

/** A figure beside the one it should reach. */
function mark(what: string, unit: string, figure: number, wanted: number): Row {
  return { what, unit, ours: figure, peer: 'first mark', theirs: wanted, required: 1 }
}
