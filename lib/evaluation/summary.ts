import { type AnsweredQuestion, exactMatch, isUnanswerable, percentage } from './squad-metrics.js'

/** The five figures of a table row, in percent, and the counts they are taken of. */
export interface Summary {
  /** Answers that could be read. */
  validJson: number
  exactMatch: number
  /** Exact matches among the answers that could be read. */
  exactMatchOfValid: number
  /** Unanswerable questions answered with "?", of all unanswerable questions. */
  correctNoAnswer: number
  /** Answerable questions answered word for word, of all answerable questions. */
  correctHasAnswer: number
  total: number
  totalNoAnswer: number
  totalHasAnswer: number
}

/** The five figures of llama-squad's table. Unlike there, unanswerable questions are scored against their own count. */
export function summarize(rows: Iterable<AnsweredQuestion>): Summary {
  let total = 0
  let valid = 0
  let totalNoAnswer = 0
  let correctNoAnswer = 0
  let correctHasAnswer = 0
  for (const { answer, answers } of rows) {
    const unanswerable = isUnanswerable(answers)
    const correct = exactMatch(answer, answers) ? 1 : 0
    total++
    valid += answer === null ? 0 : 1
    totalNoAnswer += unanswerable ? 1 : 0
    correctNoAnswer += unanswerable ? correct : 0
    correctHasAnswer += unanswerable ? 0 : correct
  }
  const matches = correctNoAnswer + correctHasAnswer
  const totalHasAnswer = total - totalNoAnswer
  return {
    validJson: percentage(valid, total),
    exactMatch: percentage(matches, total),
    exactMatchOfValid: percentage(matches, valid),
    correctNoAnswer: percentage(correctNoAnswer, totalNoAnswer),
    correctHasAnswer: percentage(correctHasAnswer, totalHasAnswer),
    total,
    totalNoAnswer,
    totalHasAnswer,
  }
}
