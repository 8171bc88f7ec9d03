import { invalidArgument } from '../errors.js'

/** What the prompts ask for when the context holds no answer. */
export const NO_ANSWER = '?'

export interface AnsweredQuestion {
  /** The model's answer; null where none could be read from its text. */
  answer: string | null
  /** All correct answers; none, or only {@link NO_ANSWER}, for a question that cannot be answered. */
  answers: readonly string[]
}

/** Percentages over `total` questions. */
export interface SquadScore {
  exact: number
  f1: number
  total: number
}

export interface SquadMetrics extends SquadScore {
  hasAnswer: SquadScore
  noAnswer: SquadScore
}

/** Whether the question has no answer in its context. */
export function isUnanswerable(answers: readonly string[]): boolean {
  if (!Array.isArray(answers)) throw invalidArgument(`answers: expected a list of strings, received ${typeof answers}`)
  return answers.every((answer) => answer === NO_ANSWER || answer === '')
}

/** Whether `answer` is, character for character, one of `answers`; for an unanswerable question, whether it is {@link NO_ANSWER}. */
export function exactMatch(answer: string | null, answers: readonly string[]): boolean {
  if (answer === null) return false
  return isUnanswerable(answers) ? answer === NO_ANSWER : answers.includes(answer)
}

const PUNCTUATION = /[!-/:-@[-`{-~]/g
// Python's \b, which the official script uses, knows letters beyond ASCII; JavaScript's does not.
const ARTICLES = /(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu

/** The official SQuAD normalisation: lower case, no ASCII punctuation, no articles, single spaces. */
export function normalizeAnswer(text: string): string {
  return text.toLowerCase().replace(PUNCTUATION, '').replace(ARTICLES, ' ').split(/\s+/).filter(Boolean).join(' ')
}

/** Token-level F1 of two answers after {@link normalizeAnswer}; where one is empty, whether both are. */
export function answerF1(answer: string, gold: string): number {
  const got = normalizeAnswer(answer).split(' ').filter(Boolean)
  const expected = normalizeAnswer(gold).split(' ').filter(Boolean)
  if (got.length === 0 || expected.length === 0) return got.length === expected.length ? 1 : 0
  const left = new Map<string, number>()
  for (const token of expected) left.set(token, (left.get(token) ?? 0) + 1)
  let common = 0
  for (const token of got) {
    const count = left.get(token) ?? 0
    if (count > 0) {
      common++
      left.set(token, count - 1)
    }
  }
  return common === 0 ? 0 : (2 * common) / (got.length + expected.length)
}

/**
 * Exact match and F1 as SQuAD 2.0's official `evaluate-v2.0.py` gives them, in percent, also for the questions with and without an
 * answer apart (each against its own count). {@link NO_ANSWER} stands for the script's empty answer; no readable answer is wrong.
 */
export function squadMetrics(rows: Iterable<AnsweredQuestion>): SquadMetrics {
  const hasAnswer = { exact: 0, f1: 0, total: 0 }
  const noAnswer = { exact: 0, f1: 0, total: 0 }
  for (const { answer, answers } of rows) {
    const unanswerable = isUnanswerable(answers)
    const sums = unanswerable ? noAnswer : hasAnswer
    sums.total++
    if (answer === null) continue
    const given = answer === NO_ANSWER ? '' : answer
    const golds = unanswerable ? [''] : answers.filter((gold) => normalizeAnswer(gold) !== '')
    if (golds.length === 0) golds.push('')
    sums.exact += golds.some((gold) => normalizeAnswer(gold) === normalizeAnswer(given)) ? 1 : 0
    sums.f1 += Math.max(...golds.map((gold) => answerF1(given, gold)))
  }
  const all = {
    exact: hasAnswer.exact + noAnswer.exact,
    f1: hasAnswer.f1 + noAnswer.f1,
    total: hasAnswer.total + noAnswer.total,
  }
  return { ...inPercent(all), hasAnswer: inPercent(hasAnswer), noAnswer: inPercent(noAnswer) }
}

function inPercent({ exact, f1, total }: SquadScore): SquadScore {
  return { exact: percentage(exact, total), f1: percentage(f1, total), total }
}

/** 100 part / whole; 0 of nothing is 0. */
export function percentage(part: number, whole: number): number {
  return whole === 0 ? 0 : (100 * part) / whole
}
