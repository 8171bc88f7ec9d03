import type { Checkpoint, EvaluateEvent, LogEvent, StepEvent, TrainOutput } from '../lib/training/types.js'

/** Events of a Trainer. A listener that throws stops the training after a checkpoint; `train()` then rejects with its error. */
export type TrainerEvents = {
  /** Every `loggingSteps` optimizer steps: the one place where the loss is read. */
  log: (event: LogEvent) => void
  /** After each optimizer step was queued; nothing has been waited for. */
  step: (event: StepEvent) => void
  /** After each evaluation. */
  evaluate: (event: EvaluateEvent) => void
  /** After a checkpoint was renamed into place. */
  save: (event: Checkpoint) => void
  /** The training ended without an error. */
  end: (event: TrainOutput) => void
}

/** An EventEmitter that knows its events. The one place that names typed-emitter, which is needed for types alone. */
export type TypedEmitter<Events extends import('typed-emitter').EventMap> = import('typed-emitter').default<Events>
