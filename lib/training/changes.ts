import type { RunSetup } from './state.js'

const meaning: Record<keyof RunSetup, string> = {
  seed: 'the seed',
  strategy: 'the sampling strategy',
  samplesPerStep: 'the samples of an optimizer step',
  datasetLength: "the data set's length",
  device: 'the device',
  variant: 'the CPU variant',
}

/**
 * Says what differs between a checkpoint and the training that resumes it, as that one will not repeat the uninterrupted run; null
 * if nothing does.
 */
export function describeChanges(checkpoint: string, before: RunSetup, now: RunSetup): string | null {
  const changes = (Object.keys(meaning) as (keyof RunSetup)[])
    .filter((key) => before[key] !== now[key])
    .map((key) => `${meaning[key]} was ${before[key]} and is ${now[key]}`)
  if (changes.length === 0) return null
  return `resuming from ${checkpoint} will not repeat the uninterrupted training bit for bit: ${changes.join('; ')}`
}
