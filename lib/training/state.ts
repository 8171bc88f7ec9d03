import { QuantuneError } from '../errors.js'
import { isJsonObject, type JsonObject } from '../formats/json.js'
import type { FeedPosition } from './feed.js'
import type { EvaluateEvent, LogEntry, LogEvent, TrainerState } from './types.js'

/** All that a training must remember to go on as if it had never stopped, beside the parameters and the optimizer's moments. */
export interface RunState extends TrainerState {
  /** When the first of the runs that continue each other began; orders checkpoints of different trainings. */
  startedAt: string
  feed: FeedPosition
  /** Sum of the logged steps' losses. */
  loggedLoss: number
  /** Sum of the losses of the steps since the last log, a float32 as it lies on the device. */
  windowLoss: number
  windowSteps: number
  evaluationsWithoutImprovement: number
}

/** What must be as it was for a resumed training to repeat the uninterrupted one. */
export interface RunSetup {
  seed: number
  strategy: string
  samplesPerStep: number
  datasetLength: number | null
  device: string
  variant: string
}

export const newState = (maxSteps: number): RunState => ({
  globalStep: 0,
  maxSteps,
  epoch: 0,
  logHistory: [],
  bestMetric: null,
  bestGlobalStep: null,
  bestModelCheckpoint: null,
  startedAt: new Date().toISOString(),
  feed: { epoch: 0, position: 0 },
  loggedLoss: 0,
  windowLoss: 0,
  windowSteps: 0,
  evaluationsWithoutImprovement: 0,
})

/** Mean loss over all steps; NaN without any. */
export const meanLoss = ({ loggedLoss, windowLoss, globalStep }: RunState) => (loggedLoss + windowLoss) / globalStep

/** A line of `log.jsonl`, under the names that Hugging Face's trainer gives. */
export function logLine(entry: LogEntry): JsonObject {
  const { step, epoch } = entry
  if ('metrics' in entry) return { epoch, ...entry.metrics, step }
  return {
    epoch,
    grad_norm: entry.gradNorm,
    learning_rate: entry.learningRate,
    loss: entry.loss,
    step,
    max_steps: entry.maxSteps,
    samples_per_second: entry.samplesPerSecond,
    tokens_per_second: entry.tokensPerSecond,
  }
}

function parseLogLine(line: JsonObject): LogEntry {
  const { step, epoch, ...rest } = line as Record<string, number>
  if (!('loss' in rest)) return { step, epoch, metrics: rest } as EvaluateEvent
  return {
    step,
    maxSteps: rest.max_steps,
    epoch,
    learningRate: rest.learning_rate,
    loss: rest.loss,
    gradNorm: rest.grad_norm,
    tokensPerSecond: rest.tokens_per_second,
    samplesPerSecond: rest.samples_per_second,
  } as LogEvent
}

/** The content of `trainer_state.json`: Hugging Face's fields, and what resuming needs under `quantune`. */
export function stateToJson(state: RunState, setup: RunSetup, optimizerSteps: Record<string, number>): JsonObject {
  return {
    best_global_step: state.bestGlobalStep,
    best_metric: state.bestMetric,
    best_model_checkpoint: state.bestModelCheckpoint,
    epoch: state.epoch,
    global_step: state.globalStep,
    log_history: state.logHistory.map(logLine),
    max_steps: state.maxSteps,
    quantune: {
      version: 1,
      started_at: state.startedAt,
      feed: state.feed,
      logged_loss: state.loggedLoss,
      window_loss: state.windowLoss,
      window_steps: state.windowSteps,
      evaluations_without_improvement: state.evaluationsWithoutImprovement,
      setup,
      optimizer_steps: optimizerSteps,
    },
  }
}

export interface SavedState {
  state: RunState
  setup: RunSetup
  optimizerSteps: Record<string, number>
}

/** @throws QuantuneError `ERR_CORRUPT_FILE` for a file that this library did not write */
export function stateFromJson(json: JsonObject, path: string): SavedState {
  const own = json.quantune
  const history = json.log_history
  if (
    !isJsonObject(own) ||
    own.version !== 1 ||
    !Array.isArray(history) ||
    !isJsonObject(own.feed) ||
    !isJsonObject(own.setup)
  ) {
    throw new QuantuneError('ERR_CORRUPT_FILE', `${path}: not the state of a quantune training`, { details: { path } })
  }
  const state: RunState = {
    globalStep: json.global_step as number,
    maxSteps: json.max_steps as number,
    epoch: json.epoch as number,
    logHistory: history.map((line) => parseLogLine(line as JsonObject)),
    bestMetric: json.best_metric as number | null,
    bestGlobalStep: json.best_global_step as number | null,
    bestModelCheckpoint: json.best_model_checkpoint as string | null,
    startedAt: own.started_at as string,
    feed: own.feed as unknown as FeedPosition,
    loggedLoss: own.logged_loss as number,
    windowLoss: own.window_loss as number,
    windowSteps: own.window_steps as number,
    evaluationsWithoutImprovement: own.evaluations_without_improvement as number,
  }
  return { state, setup: own.setup as unknown as RunSetup, optimizerSteps: own.optimizer_steps as Record<string, number> }
}
