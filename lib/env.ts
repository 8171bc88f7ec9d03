import { invalidArgument } from './errors.js'
import { loadNative } from './native.js'

const levels = ['silent', 'error', 'warn', 'info', 'debug'] as const
export type LogLevel = (typeof levels)[number]
export type Logger = (level: Exclude<LogLevel, 'silent'>, message: string) => void

function levelFromEnvironment(): LogLevel {
  const level = process.env.QUANTUNE_LOG
  return levels.includes(level as LogLevel) ? (level as LogLevel) : 'silent'
}

function checkThreads(value: unknown, name: string): number {
  const threads = Number(value)
  if (!Number.isInteger(threads) || threads < 1 || threads > 256) {
    throw invalidArgument(`${name} must be an integer from 1 to 256, got ${String(value)}`)
  }
  return threads
}

let logLevel: LogLevel = levelFromEnvironment()
let numThreads: number | undefined

/** Settings of the library in this environment (the process, or one Worker). */
export const env = {
  /** How much the library says; default `QUANTUNE_LOG`, else 'silent'. */
  get logLevel(): LogLevel {
    return logLevel
  },
  set logLevel(level: LogLevel) {
    if (!levels.includes(level)) throw invalidArgument(`env.logLevel must be one of ${levels.join(', ')}, got ${String(level)}`)
    logLevel = level
  },

  /** Where it says it; default: standard error. */
  logger: ((level, message) => process.stderr.write(`quantune ${level}: ${message}\n`)) as Logger,

  /**
   * Threads for CPU kernels, process-wide; default `QUANTUNE_NUM_THREADS`, else the cores the container may use. Results do not
   * depend on it.
   */
  get numThreads(): number {
    if (numThreads !== undefined) return numThreads
    const value = process.env.QUANTUNE_NUM_THREADS
    return value ? checkThreads(value, 'QUANTUNE_NUM_THREADS') : loadNative().usableCores()
  },
  set numThreads(threads: number) {
    numThreads = checkThreads(threads, 'env.numThreads')
    loadNative().setThreads(numThreads)
  },
}

/** Hands `message` to `env.logger` when `env.logLevel` lets it through; a function is called only then. */
export function log(level: Exclude<LogLevel, 'silent'>, message: string | (() => string)): void {
  if (levels.indexOf(level) > levels.indexOf(logLevel)) return
  env.logger(level, typeof message === 'string' ? message : message())
}

let seed = 42
let draws = 0

/** Seeds whatever is random and was given no seed of its own: initial weights, sampling, shuffling. Default 42. */
export function setSeed(value: number): void {
  if (!Number.isSafeInteger(value) || value < 0) throw invalidArgument(`the seed must be an integer >= 0, got ${String(value)}`)
  seed = value
  draws = 0
}

/** The seed in force. */
export function getSeed(): number {
  return seed
}

/** A fresh 32-bit seed from the sequence that {@link setSeed} starts (SplitMix32's finalizer on seed and count). */
export function drawSeed(): number {
  let z = (Math.imul((seed % 2 ** 32) | 0, 0x9e3779b1) + Math.imul(++draws, 0x85ebca77) + Math.floor(seed / 2 ** 32)) | 0
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad)
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
  return (z ^ (z >>> 15)) >>> 0
}
