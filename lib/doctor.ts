import { readFileSync } from 'node:fs'
import { freemem, totalmem } from 'node:os'
import { env } from './env.js'
import { loadNative, nativePath } from './native.js'
import { Device } from './tensor/device.js'
import { probe } from './tensor/probe.js'

interface Line {
  device: string
  state: 'usable' | 'refused'
  /** What it is, or why it is refused and what to do. */
  text: string
}

const gibibytes = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`

async function cpuLine(): Promise<Line> {
  try {
    const { variant } = await Device.open('cpu')
    const memory = `${gibibytes(freemem())} of ${gibibytes(totalmem())} free`
    return { device: 'cpu', state: 'usable', text: `${variant} kernels, ${env.numThreads} threads, ${memory}` }
  } catch (error) {
    return { device: 'cpu', state: 'refused', text: (error as Error).message }
  }
}

async function gpuLines(backend: string): Promise<{ lines: Line[]; versions: string }> {
  try {
    const { driver, runtime, problem, devices } = await probe(backend)
    const versions = `plugin built with CUDA ${runtime}; driver ${driver === '0.0' ? 'missing' : `supports CUDA ${driver}`}`
    if (problem) return { lines: [{ device: backend, state: 'refused', text: problem }], versions }
    const lines = devices.map(({ index, name, compute, memory, refusal }): Line => {
      const what = `${name}, compute capability ${compute}, ${gibibytes(memory)}`
      return { device: `${backend}:${index}`, state: refusal ? 'refused' : 'usable', text: refusal || what }
    })
    return { lines, versions }
  } catch (error) {
    return { lines: [{ device: backend, state: 'refused', text: (error as Error).message }], versions: 'no plugin' }
  }
}

/** What `quantune doctor` prints: versions, the addon, and each device with what it is or why it is refused. */
export async function doctor({ backend = 'cuda' } = {}): Promise<string> {
  const { version } = JSON.parse(readFileSync(new URL(packagePath()), 'utf8')) as { version: string }
  const addon = loadNative()
  const gpus = await gpuLines(backend)
  const lines = [await cpuLine(), ...gpus.lines]
  const chosen = gpus.lines.some(({ device, state }) => state === 'usable' && device === `${backend}:0`) ? backend : 'cpu'
  const width = Math.max(...lines.map(({ device }) => device.length))
  return [
    `quantune ${version}, Node ${process.versions.node}, ${process.platform}-${process.arch}`,
    `addon    ${nativePath()} (ABI ${addon.abiVersion})`,
    `CUDA     ${gpus.versions}`,
    '',
    ...lines.map(({ device, state, text }) => `${device.padEnd(width)}  ${state.padEnd(7)}  ${text}`),
    '',
    `device 'auto' takes ${chosen}`,
  ].join('\n')
}

/** package.json, from lib/ as from dist/lib/. */
function packagePath(): string {
  const inSources = new URL('../package.json', import.meta.url)
  return import.meta.url.includes('/dist/lib/') ? new URL('../../package.json', import.meta.url).href : inSources.href
}
