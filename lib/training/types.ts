/** What happened to end a training that did not fail. */
export type StopReason = 'completed' | 'stopped' | 'early-stopping'

/** Metrics by name; those of an evaluation begin with `eval_`. */
export type Metrics = Record<string, number>

export interface StepEvent {
  /** Optimizer steps so far, this one included. */
  step: number
  maxSteps: number
  /** Epochs so far, as a fraction; for an iterable without a length, whole ones. */
  epoch: number
  /** The learning rate that this step used. */
  learningRate: number
}

export interface LogEvent extends StepEvent {
  /** Mean over the steps since the last log of each step's loss per labelled token. */
  loss: number
  /** Global L2 norm of the last step's gradients, before clipping. */
  gradNorm: number
  /** Tokens computed per second since the last log; a prefix that samples share counts once. */
  tokensPerSecond: number
  samplesPerSecond: number
}

export interface EvaluateEvent {
  step: number
  epoch: number
  metrics: Metrics
}

export interface Checkpoint {
  step: number
  /** The checkpoint's folder. */
  path: string
}

/** A line of `log.jsonl` and of the history in `trainer_state.json`, there under Hugging Face's names. */
export type LogEntry = LogEvent | EvaluateEvent

export interface TrainOutput {
  stopReason: StopReason
  globalStep: number
  /** Mean loss over all optimizer steps, those before a resume included; NaN without any. */
  trainLoss: number
  /** Of the last evaluation, and of the run (`train_runtime` in seconds, …). */
  metrics: Metrics
  /** Folder of the last checkpoint that was written, or null. */
  lastCheckpoint: string | null
}

/** Where a training stands; a copy. */
export interface TrainerState {
  globalStep: number
  maxSteps: number
  epoch: number
  logHistory: LogEntry[]
  /** The best value so far of `metricForBestModel`. */
  bestMetric: number | null
  bestGlobalStep: number | null
  bestModelCheckpoint: string | null
}
