/** A public call that queued operations: what a failure is reported with. */
export interface CallSite {
  id: number
  name: string
  /** Its stack is formatted only when it is read. */
  trace: Error
}

/** Under `QUANTUNE_TRACE=1` every operation gets a stack of its own. */
export const traceEveryOperation = process.env.QUANTUNE_TRACE === '1'

/** Failures surface soon after they were queued; older stacks are forgotten. */
const KEPT = traceEveryOperation ? 4096 : 128
const sites: (CallSite | undefined)[] = new Array(KEPT)
let latest = 0

/** The site of what is being queued, 0: unknown. The queues compare it with the last one they wrote. */
export let currentSite = 0

export function newSite(name: string, below: (...args: never[]) => unknown): number {
  latest = (latest % 0x7ffffffe) + 1
  const trace = new Error(name)
  Error.captureStackTrace(trace, below)
  sites[latest % KEPT] = { id: latest, name, trace }
  return latest
}

/** Formats the stacks that are kept: until then they hold what their functions were called on, such as a model that was disposed of. */
export function formatTraces(): void {
  for (const site of sites) void site?.trace.stack
}

export function findSite(id: number): CallSite | undefined {
  const site = sites[id % KEPT]
  return site?.id === id ? site : undefined
}

/** Runs `fn` as the public call `name`: operations that it queues synchronously fail with this call's stack. */
export function withCallSite<T>(name: string, fn: () => T): T {
  const outer = currentSite
  currentSite = newSite(name, withCallSite)
  try {
    return fn()
  } finally {
    currentSite = outer
  }
}
