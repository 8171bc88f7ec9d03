/**
 * Runs the benchmarks, each trial in its own process, writes bench/results/DATE.json and prints a table with ratios.
 *
 * usage: npm run bench -- [--peers PYTHON] [--repeat 3] [--only train]
 * PYTHON is an interpreter with torch, transformers and peft; without it our figures stand alone.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { median, type TrialResult } from './trial.js'

const DIST = dirname(fileURLToPath(import.meta.url))
const ROOT = resolve(DIST, '../..')

interface PeerFigures {
  dtype: string
  tokens_per_s: number
  peak_mb: number
}

function ours(script: string, ...args: string[]): TrialResult {
  const out = execFileSync(process.execPath, [join(DIST, script), ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  return JSON.parse(out.trim().split('\n').pop()!) as TrialResult
}

function peer(python: string, script: string, ...args: string[]): PeerFigures {
  const out = execFileSync(python, [join(ROOT, 'bench/peers', script), ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  return JSON.parse(out.trim().split('\n').pop()!) as PeerFigures
}

/** Ours and the peer in turn, so that both see the same machine. */
function training(python: string | undefined, repeat: number) {
  const own: TrialResult[] = []
  const peers: PeerFigures[] = []
  for (let i = 0; i < repeat; i++) {
    own.push(ours('train/lora.js'))
    if (python) peers.push(peer(python, 'torch_peft_train.py', '--dtype', 'fp32', '--steps', '3'))
  }
  // Where the CPU has no bfloat16 products PyTorch emulates them, many times slower than float32.
  if (python && hasBfloat16()) peers.push(peer(python, 'torch_peft_train.py', '--dtype', 'bf16', '--steps', '3'))
  const best = peers.length ? Math.max(...peers.map((figures) => figures.tokens_per_s)) : Number.NaN
  const faster = peers.filter((figures) => figures.dtype === peers.find((p) => p.tokens_per_s === best)?.dtype)
  return {
    name: 'LoRA/NF4 training, 2 x 512, r = 16, SmolLM2-135M shape',
    own,
    peers,
    rows: [
      ratio(
        'tokens/s',
        median(own.map((result) => result.figures.tokensPerSecond!)),
        median(faster.map((figures) => figures.tokens_per_s)),
      ),
      ratio(
        'peak memory, MB',
        median(own.map((result) => result.figures.peakMegabytes!)),
        median(faster.map((figures) => figures.peak_mb)),
      ),
    ],
  }
}

function hasBfloat16(): boolean {
  return process.platform === 'linux' && /\b(avx512_bf16|amx_bf16)\b/.test(readFileSync('/proc/cpuinfo', 'utf8'))
}

function ratio(what: string, own: number, peerValue: number) {
  return {
    what,
    ours: own,
    peer: Number.isFinite(peerValue) ? peerValue : null,
    ratio: Number.isFinite(peerValue) ? own / peerValue : null,
  }
}

function main(): void {
  const { values } = parseArgs({ options: { peers: { type: 'string' }, repeat: { type: 'string', default: '3' } } })
  const sections = [training(values.peers, Number(values.repeat))]
  const table = new Table({ head: ['What', 'quantune', 'PyTorch + PEFT', 'ratio'] })
  for (const { name, rows } of sections) {
    for (const row of rows) {
      table.push([
        `${name}: ${row.what}`,
        row.ours.toFixed(1),
        row.peer?.toFixed(1) ?? '-',
        row.ratio ? `${row.ratio.toFixed(2)} x` : '-',
      ])
    }
  }
  console.log(table.toString())
  const date = new Date().toISOString().slice(0, 10)
  const machine = { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length, node: process.version }
  mkdirSync(join(ROOT, 'bench/results'), { recursive: true })
  writeFileSync(join(ROOT, `bench/results/${date}.json`), `${JSON.stringify({ date, machine, sections }, null, 2)}\n`)
}

main()
