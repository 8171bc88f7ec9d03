import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { nativePath, pluginFile, pluginFolder } from '../native.js'

/** What a plugin says about itself, its driver and its devices. */
export interface PluginDescription {
  /** The highest CUDA version that the installed driver supports; '0.0' without a driver. */
  driver: string
  /** The CUDA version that the plugin was built with. */
  runtime: string
  /** Why no device can be used, where that is so. */
  problem?: string
  devices: {
    index: number
    name: string
    /** Compute capability, '9.0'. */
    compute: string
    /** Bytes. */
    memory: number
    /** Why this device cannot be used; '' when it can. */
    refusal: string
  }[]
}

/** How long a driver may take to answer. */
const PATIENCE = 30_000

const probes = new Map<string, Promise<PluginDescription>>()

/**
 * Asks a plugin about its driver and devices in a child process, so that a driver that crashes or hangs takes nothing else down.
 * Once per plugin and environment.
 * @throws Error with the reason when it cannot be asked
 */
export function probe(backend: string): Promise<PluginDescription> {
  const known = probes.get(backend)
  if (known) return known
  const asking = ask(backend)
  probes.set(backend, asking)
  return asking
}

async function ask(backend: string): Promise<PluginDescription> {
  const folder = pluginFolder(backend)
  const path = join(folder, pluginFile(backend))
  if (!existsSync(path)) throw new Error(`its plugin is not installed (there is no ${path}): build it with npm run build:cuda`)
  const program = 'process.stdout.write(require(process.argv[1]).describePlugin(process.argv[2], process.argv[3]))'
  const output = await new Promise<string>((resolve, reject) => {
    const args = ['-e', program, nativePath(), backend, folder]
    execFile(process.execPath, args, { timeout: PATIENCE, killSignal: 'SIGKILL' }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout)
      if (error.killed) return reject(new Error(`its driver did not answer within ${PATIENCE / 1000} s`))
      if (error.signal) return reject(new Error(`its driver crashed (${error.signal}) when it was asked about its devices`))
      reject(new Error(/^Error: (.*)$/m.exec(stderr)?.[1] ?? error.message))
    })
  })
  return JSON.parse(output) as PluginDescription
}

/** Why the device of that name cannot be used, as far as the probe of its plugin tells (asked `again`); null for other devices. */
export async function whyRefused(name: string, { again = false } = {}): Promise<string | null> {
  const [backend, index = '0'] = name.split(':') as [string, string?]
  const playedDriver = backend === 'cuda-emulated' && process.env.QUANTUNE_EMULATED_DRIVER
  if (backend !== 'cuda' && !playedDriver) return null
  if (!/^\d+$/.test(index)) return null // the addon says how devices are named
  if (again) probes.delete(backend)
  try {
    const { problem, devices } = await probe(backend)
    if (problem) return problem
    return devices.find((device) => String(device.index) === index)?.refusal || null
  } catch (error) {
    return (error as Error).message
  }
}
