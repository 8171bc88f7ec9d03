/** The programs of others that are timed beside ours, where they are installed. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { env } from '../lib/env.js'

const FOLDER = resolve(dirname(fileURLToPath(import.meta.url)), '../../bench/peers')

export interface Peers {
  /** An interpreter with torch, transformers and PEFT. */
  python?: string
  /** A folder in whose node_modules node-llama-cpp lies. */
  llamaCpp?: string
}

type Figures = Record<string, number>

function lastLine(command: string, args: readonly string[]): Figures {
  const out = execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  return JSON.parse(out.trim().split('\n').pop()!) as Figures
}

/** Runs one of bench/peers' Python programs in the form that is faster on this machine; null without Python. */
export function torch(peers: Peers, script: string, ...args: string[]): Figures | null {
  if (!peers.python) return null
  const dtype = hasBfloat16() ? 'bf16' : 'fp32'
  return lastLine(peers.python, [join(FOLDER, script), ...args, '--dtype', dtype, '--threads', String(env.numThreads)])
}

/** node-llama-cpp on a file of the same shape with Q4_0 weights; null where it is not installed. */
export function llamaCpp(peers: Peers, prompt: number, tokens: number): Figures | null {
  if (!peers.llamaCpp) return null
  const file = join(tmpdir(), 'quantune-bench-135m-q4_0.gguf')
  if (!existsSync(file)) execFileSync(process.execPath, [join(FOLDER, 'random_gguf.mjs'), file])
  const args = [peers.llamaCpp, file, prompt, tokens, env.numThreads].map(String)
  return lastLine(process.execPath, [join(FOLDER, 'node_llama_cpp.mjs'), ...args])
}

/** Where the CPU has no bfloat16 products PyTorch emulates them, many times slower than float32. */
export function hasBfloat16(): boolean {
  if (process.env.QUANTUNE_CPU === 'avx2') return false
  return process.platform === 'linux' && /\b(avx512_bf16|amx_bf16)\b/.test(readFileSync('/proc/cpuinfo', 'utf8'))
}

/** For this process and those that it starts: our kernels and the libraries that PyTorch computes with. */
export function holdToAvx2(): void {
  Object.assign(process.env, {
    QUANTUNE_CPU: 'avx2',
    ATEN_CPU_CAPABILITY: 'avx2',
    MKL_ENABLE_INSTRUCTIONS: 'AVX2',
    ONEDNN_MAX_CPU_ISA: 'AVX2',
  })
}

/** Names and versions of the peers, for the record. */
export function versions({ python, llamaCpp: folder }: Peers): Record<string, string> {
  const found: Record<string, string> = {}
  if (python) {
    const program =
      'import json, torch, transformers, peft; print(json.dumps({m.__name__: m.__version__ for m in (torch, transformers, peft)}))'
    Object.assign(
      found,
      JSON.parse(execFileSync(python, ['-c', program], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })),
    )
  }
  if (folder) {
    const manifest = join(folder, 'node_modules/node-llama-cpp/package.json')
    found['node-llama-cpp'] = (JSON.parse(readFileSync(manifest, 'utf8')) as { version: string }).version
  }
  return found
}
