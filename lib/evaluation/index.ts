export { type EvaluationRow, EvaluationWriter, readEvaluation } from './csv.js'
export { extractAnswer } from './extract-answer.js'
export {
  type AnsweredQuestion,
  answerF1,
  exactMatch,
  isUnanswerable,
  NO_ANSWER,
  normalizeAnswer,
  type SquadMetrics,
  type SquadScore,
  squadMetrics,
} from './squad-metrics.js'
export { type Summary, summarize } from './summary.js'
