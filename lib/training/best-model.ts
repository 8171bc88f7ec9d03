import { invalidArgument } from '../errors.js'
import type { ResolvedArguments } from './arguments.js'
import type { RunState } from './state.js'
import type { Metrics } from './types.js'

/**
 * Notes in `state` whether an evaluation was the best so far.
 *
 * @returns whether the patience with a metric that does not improve is exhausted
 * @throws QuantuneError `ERR_INVALID_ARGUMENT` where the metric is needed and the evaluation did not give it
 */
export function judge(state: RunState, metrics: Metrics, args: ResolvedArguments): boolean {
  const { metricForBestModel: name, greaterIsBetter, earlyStoppingPatience, earlyStoppingThreshold } = args
  const value = metrics[name]
  if (value === undefined || Number.isNaN(value)) {
    if (!args.loadBestModelAtEnd && args.saveStrategy !== 'best' && !earlyStoppingPatience) return false
    const found = value === undefined ? `only ${Object.keys(metrics).join(', ')}` : 'but NaN'
    throw invalidArgument(`TrainingArguments.metricForBestModel: expected the evaluation to give a number "${name}", ${found}`)
  }
  const gain = state.bestMetric === null ? Number.POSITIVE_INFINITY : (value - state.bestMetric) * (greaterIsBetter ? 1 : -1)
  state.evaluationsWithoutImprovement = gain > earlyStoppingThreshold ? 0 : state.evaluationsWithoutImprovement + 1
  if (gain > 0) {
    state.bestMetric = value
    state.bestGlobalStep = state.globalStep
  }
  return earlyStoppingPatience !== undefined && state.evaluationsWithoutImprovement >= earlyStoppingPatience
}
