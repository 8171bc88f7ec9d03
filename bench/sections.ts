/** What is measured: each section runs trials of ours and of the peers in turn and says how they compare. */
import { execFileSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { hasBfloat16, llamaCpp, type Peers, torch } from './peers.js'
import { median, type TrialResult } from './trial.js'

const DIST = dirname(fileURLToPath(import.meta.url))

/** One comparison, or one figure of ours alone. */
export interface Row {
  what: string
  unit: string
  ours: number
  /** Whose figure `theirs` is; absent where there is no peer for this, or none installed. */
  peer?: string
  theirs?: number
  /** Smaller figures are better (seconds, bytes). */
  smallerIsBetter?: boolean
  /** What ours / theirs should at least be; where smaller is better, at most. */
  required?: number
}

export interface Section {
  title: string
  rows: Row[]
  trials: TrialResult[]
  /** What a reader must know of these figures that they don't say; written into the results by hand. */
  remark?: string
}

export interface Settings {
  peers: Peers
  repeat: number
  /** A folder with SmolLM2's files. */
  model?: string
  /** A folder with SQuAD 2.0's train.json. */
  data?: string
}

/** By name; the value is null where something that it needs was not given. */
export const sections: Record<string, (settings: Settings) => Section | null> = {
  training,
  squad,
  generation,
  kernels,
  data,
  growth,
}

/** The requirement for a CPU with bfloat16 products, and for one without. */
const required = (bfloat16: number, otherwise: number) => (hasBfloat16() ? bfloat16 : otherwise)

/** Runs one of our trials in a process of its own. */
export function ours(script: string, ...args: string[]): TrialResult {
  const out = execFileSync(process.execPath, [join(DIST, script), ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  return JSON.parse(out.trim().split('\n').pop()!) as TrialResult
}

/** Ours and the peer's in turn, so that both see the same machine. */
function inTurn<T>(repeat: number, own: () => TrialResult, other: () => T | null) {
  const trials: TrialResult[] = []
  const others: T[] = []
  for (let i = 0; i < repeat; i++) {
    trials.push(own())
    const figures = other()
    if (figures) others.push(figures)
  }
  return { trials, others }
}

const figure = (trials: readonly TrialResult[], name: string) => median(trials.map(({ figures }) => figures[name]!))

/** The peer's part of a row, from the medians of its runs; empty without runs. */
function against(peer: string, runs: readonly Record<string, number>[], name: string): Pick<Row, 'peer' | 'theirs'> {
  return runs.length > 0 ? { peer, theirs: median(runs.map((figures) => figures[name]!)) } : {}
}

function training({ peers, repeat }: Settings): Section {
  const { trials, others } = inTurn(
    repeat,
    () => ours('train/lora.js'),
    () => torch(peers, 'torch_peft_train.py', '--steps', '3'),
  )
  const peft = (name: string) => against('PyTorch + PEFT', others, name)
  return {
    title: 'LoRA training on NF4 weights, 2 x 512 tokens, r = 16 on all linear layers, shape of SmolLM2-135M',
    trials,
    rows: [
      {
        what: 'training',
        unit: 'tokens/s',
        ours: figure(trials, 'tokensPerSecond'),
        ...peft('tokens_per_s'),
        required: required(3, 2),
      },
      {
        what: 'peak resident memory',
        unit: 'MB',
        ours: figure(trials, 'peakMegabytes'),
        ...peft('peak_mb'),
        smallerIsBetter: true,
        required: 0.25,
      },
      {
        what: 'event-loop delay while training, 99th percentile',
        unit: 'ms',
        ours: figure(trials, 'eventLoopDelayP99Milliseconds'),
        smallerIsBetter: true,
      },
    ],
  }
}

function squad({ peers, repeat, model, data }: Settings): Section | null {
  if (!model || !data) return null
  const run = (...args: string[]) => ours('train/squad.js', '--model', model, '--data', data, ...args)
  const ids = join(tmpdir(), 'quantune-bench-squad-ids.json')
  if (peers.python)
    execFileSync(process.execPath, [join(DIST, 'train/squad.js'), '--model', model, '--data', data, '--ids', ids])
  const { trials, others } = inTurn(
    repeat,
    () => run('--samples', '40'),
    () => torch(peers, 'torch_peft_squad.py', ids),
  )
  const small = run('--samples', '8')
  const linear = run('--samples', '40', '--linear')
  const peft = against('PyTorch + PEFT, padded batches of 8', others, 'samples_per_s')
  return {
    title: "SQuAD 2.0 training samples in llama-squad's prompt, every question of each paragraph, same model and adapter",
    trials: [...trials, small, linear],
    rows: [
      {
        what: 'prefix trees, 40 samples a step',
        unit: 'samples/s',
        ours: figure(trials, 'samplesPerSecond'),
        ...peft,
        required: required(12, 9),
      },
      { what: 'prefix trees, 8 samples a step', unit: 'samples/s', ours: small.figures.samplesPerSecond!, ...peft },
      {
        what: 'packed one after the other, 40 samples a step',
        unit: 'samples/s',
        ours: linear.figures.samplesPerSecond!,
        ...peft,
      },
      {
        what: 'tokens of the trees',
        unit: 'tokens/s',
        ours: figure(trials, 'tokensPerSecond'),
        peer: 'ourselves, packed one after the other',
        theirs: linear.figures.tokensPerSecond!,
        required: 0.95,
      },
      // More keys a token and more labelled rows a token: trees do more arithmetic for each of theirs.
      {
        what: 'arithmetic of the trees',
        unit: 'GFLOP/s',
        ours: figure(trials, 'gigaflopsPerSecond'),
        peer: 'ourselves, packed one after the other',
        theirs: linear.figures.gigaflopsPerSecond!,
      },
    ],
  }
}

function generation({ peers, repeat }: Settings): Section {
  const greedy = inTurn(
    repeat,
    () => ours('generate/generate.js'),
    () => torch(peers, 'torch_generate.py'),
  )
  const llama = inTurn(
    repeat,
    () => greedy.trials[0]!,
    () => llamaCpp(peers, 512, 32),
  ).others
  const beams = inTurn(
    repeat,
    () => ours('generate/generate.js', '--beams', '10'),
    () => torch(peers, 'torch_generate.py', '--beams', '10'),
  )
  const prefill = { what: 'prefill of 512 tokens', unit: 'tokens/s', ours: figure(greedy.trials, 'prefillTokensPerSecond') }
  const decode = { what: 'decoding, one stream', unit: 'tokens/s', ours: figure(greedy.trials, 'decodeTokensPerSecond') }
  const q40 = (name: string) => against('node-llama-cpp, Q4_0', llama, name)
  const transformers = (name: string) => against('transformers', greedy.others, name)
  // Prompt and 32 new tokens of a search together.
  const search = (prefillRate: number, step: number) => 512 / prefillRate + (32 * step) / 1000
  const own = search(figure(beams.trials, 'prefillTokensPerSecond'), figure(beams.trials, 'millisecondsPerStep'))
  const theirs = beams.others.map((run) => search(run.prefill_tok_s!, run.ms_per_step!))
  return {
    title: 'Generation, shape of SmolLM2-135M, NF4 weights',
    trials: [...greedy.trials, ...beams.trials],
    rows: [
      { ...prefill, ...q40('prefill_tok_s'), required: required(1.5, 1.15) },
      { ...prefill, ...transformers('prefill_tok_s'), required: required(1.5, 1.15) },
      { ...decode, ...q40('decode_tok_s'), required: 2 },
      { ...decode, ...transformers('decode_tok_s') },
      {
        what: '10 beams, 512 tokens of prompt and 32 new ones',
        unit: 's',
        ours: own,
        ...(theirs.length > 0 ? { peer: 'transformers', theirs: median(theirs) } : {}),
        smallerIsBetter: true,
        required: 1 / required(8, 6),
      },
      {
        what: '10 beams, one step',
        unit: 'ms',
        ours: figure(beams.trials, 'millisecondsPerStep'),
        ...against('transformers', beams.others, 'ms_per_step'),
        smallerIsBetter: true,
      },
    ],
  }
}

function kernels({ peers }: Settings): Section {
  const trial = ours('kernels/products.js', '--rows', '1024', ...(peers.python ? ['--peers', peers.python] : []))
  const rows = Object.entries(trial.figures).flatMap(([name, gigaflops]): Row[] => {
    const match = /^(.*) (float32|bfloat16|nf4) gigaflops$/.exec(name)
    if (!match) return []
    const theirs = trial.figures[`${match[1]} torch gigaflops`]
    const row: Row = { what: `${match[1]}, ${match[2]} weights`, unit: 'GFLOP/s', ours: gigaflops }
    if (!theirs) return [row]
    // With an adapter ours does more than the plain product that it is compared with.
    const mark = match[1]!.startsWith('linear') ? {} : { required: required(0.95, 1) }
    return [{ ...row, peer: 'torch', theirs, ...mark }]
  })
  return { title: 'Matrix products, two threads (rows x outputs x inputs)', trials: [trial], rows }
}

function data({ model, data: squadFolder }: Settings): Section | null {
  if (!model || !squadFolder) return null
  const trial = ours('data/throughput.js', '--model', model, '--data', squadFolder)
  const { tokenizerTokensPerSecond, collatorSamplesPerSecond, loadSeconds, loadNf4Seconds } = trial.figures
  return {
    title: 'Around the arithmetic (SmolLM2-135M)',
    trials: [trial],
    rows: [
      { what: 'tokenizer', unit: 'tokens/s', ours: tokenizerTokensPerSecond! },
      { what: 'collator: template, tokens, labels, tree', unit: 'samples/s', ours: collatorSamplesPerSecond! },
      { what: 'loading as it is', unit: 's', ours: loadSeconds!, smallerIsBetter: true },
      { what: 'loading with quantization to NF4', unit: 's', ours: loadNf4Seconds!, smallerIsBetter: true },
    ],
  }
}

/** How the cost of a training step grows. */
function growth(): Section {
  const cases: [string, string[]][] = [
    ['1 x 128', ['--batch', '1', '--seq', '128']],
    ['1 x 512', ['--batch', '1', '--seq', '512']],
    ['1 x 1024', ['--batch', '1', '--seq', '1024']],
    ['1 x 2048', ['--batch', '1', '--seq', '2048']],
    ['4 x 512', ['--batch', '4', '--seq', '512']],
    ['2 x 512, activations recomputed', ['--checkpointing']],
    ['2 x 512, shape of SmolLM2-360M', ['--shape', 'smollm2-360m']],
  ]
  const trials = cases.map(([, args]) => ours('train/lora.js', '--steps', '3', ...args))
  const rows = cases.flatMap(([what], i): Row[] => [
    { what, unit: 'tokens/s', ours: trials[i]!.figures.tokensPerSecond! },
    { what, unit: 'MB', ours: trials[i]!.figures.peakMegabytes!, smallerIsBetter: true },
  ])
  return {
    title: 'How training grows with length, batch and model (LoRA on NF4, shape of SmolLM2-135M unless said)',
    trials,
    rows,
  }
}
