/**
 * Runs the benchmarks, each trial in its own process, writes bench/results/DATE.json and from all results docs/benchmarks.md.
 *
 * usage: npm run bench -- [--only training,squad,generation,kernels,data,growth] [--repeat 3] [--peers PYTHON] [--llama-cpp FOLDER]
 *   [--model FOLDER] [--data FOLDER] [--avx2]
 *        npm run bench -- --device cuda[:N] [--only kernels,training,generation] [--peers PYTHON] [--shapes full|tiny]
 *   --device     a GPU, for the sections of a GPU at the shape of Llama 3 8B instead of the CPU's; results go to DATE-cuda.json
 *   --shapes     tiny only shows that the sections of a GPU run (--device cuda-emulated too); nothing is written
 *   --peers      an interpreter with torch, transformers and peft; without it our figures stand alone
 *   --llama-cpp  a folder in whose node_modules node-llama-cpp lies
 *   --avx2       ours and PyTorch held to AVX2, as on a CPU that has no more; results go to DATE-avx2.json. node-llama-cpp chooses
 *                among the builds in its folder by itself
 *   --model      a folder with SmolLM2-135M's files, --data one with SQuAD 2.0's train.json: for squad and data
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { describeGpu, gpuSections, refusalOf } from './gpu-sections.js'
import { hasBfloat16, holdToAvx2, versions } from './peers.js'
import { RESULTS, type Result, renderSection, writeReport } from './report.js'
import { type Section, type Settings, sections } from './sections.js'

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    repeat: { type: 'string', default: '3' },
    peers: { type: 'string' },
    'llama-cpp': { type: 'string' },
    model: { type: 'string' },
    data: { type: 'string' },
    device: { type: 'string' },
    avx2: { type: 'boolean', default: false },
    shapes: { type: 'string', default: 'full' },
  },
})
const { device, avx2 } = values
if (avx2) holdToAvx2()
const known = device ? gpuSections({ device, tiny: values.shapes === 'tiny' }) : sections
const chosen = values.only?.split(',') ?? Object.keys(known)
const unknown = chosen.find((name) => !(name in known))
if (unknown) throw new Error(`there is no section "${unknown}"; known are ${Object.keys(known).join(', ')}`)
const refusal = device && (await refusalOf(device))
if (refusal) {
  console.error(`--device ${device} cannot be measured: ${refusal}`)
  process.exit(1)
}
const settings: Settings = {
  repeat: Number(values.repeat),
  peers: {
    ...(values.peers ? { python: values.peers } : {}),
    ...(values['llama-cpp'] ? { llamaCpp: values['llama-cpp'] } : {}),
  },
  ...(values.model ? { model: values.model } : {}),
  ...(values.data ? { data: values.data } : {}),
}

const date = new Date().toISOString().slice(0, 10)
const path = join(RESULTS, `${date}${device ? `-${device.replace(':', '')}` : avx2 ? '-avx2' : ''}.json`)
mkdirSync(RESULTS, { recursive: true })
const result: Result = {
  date,
  machine: {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    bfloat16: hasBfloat16(),
    node: process.version,
    ...(avx2 ? { heldTo: 'AVX2' } : {}),
    ...(device ? { gpu: (await describeGpu(device)).gpu } : {}),
  },
  peers: versions(settings.peers),
  sections: {},
}
for (const name of chosen) {
  const section = known[name]!(settings)
  if (!section) {
    console.log(`${name}: left out, it needs --model and --data`)
    continue
  }
  console.log(renderSection(section))
  result.sections[name] = section
  if (values.shapes === 'tiny') continue
  // After each section: what was measured stays when a later one fails.
  writeFileSync(path, `${JSON.stringify({ ...result, sections: { ...earlier(), ...result.sections } }, null, 2)}\n`)
}
if (values.shapes === 'full') writeReport()

/** Sections that an earlier run of the same day left and that this one does not repeat. */
function earlier(): Record<string, Section> {
  try {
    const { sections: before, machine } = JSON.parse(readFileSync(path, 'utf8')) as Result
    return machine.cpu === result.machine.cpu && machine.gpu === result.machine.gpu ? before : {}
  } catch {
    return {}
  }
}
