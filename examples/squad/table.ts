// The five-figure table.
import Table from 'cli-table3'
import type { Summary } from '../../lib/index.js'

export function renderTable(summaries: readonly (readonly [name: string, summary: Summary])[]): string {
  const head = [
    '',
    '% valid JSON',
    '% exact match',
    '% exact match\nof valid JSON',
    '% correct,\nno answer',
    '% correct,\nhas answer',
    'questions',
  ]
  const table = new Table({ head, style: { head: [], border: [] }, colAligns: ['left', ...Array(6).fill('right')] })
  for (const [name, s] of summaries) {
    const figures = [s.validJson, s.exactMatch, s.exactMatchOfValid, s.correctNoAnswer, s.correctHasAnswer]
    table.push([name, ...figures.map((figure) => figure.toFixed(2)), String(s.total)])
  }
  return table.toString()
}
