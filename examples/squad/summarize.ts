// The five-figure table of evaluation files, by default those in OUTPUT.
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { readEvaluation, squadMetrics, summarize } from '../../lib/index.js'
import { configure } from './config.js'
import { renderTable } from './table.js'

const { config, positionals } = configure('summarize [flags] [FILE.csv …]')
const inOutput = async () =>
  (await readdir(config.output))
    .filter((name) => name.endsWith('.csv') && !name.endsWith('.previous.csv'))
    .map((name) => join(config.output, name))
const files = positionals.length > 0 ? positionals : await inOutput()
if (files.length === 0) throw new Error(`There is no CSV file in ${config.output}: evaluate first`)
const evaluations = await Promise.all(files.map(async (file) => [basename(file, '.csv'), await readEvaluation(file)] as const))
console.log(renderTable(evaluations.map(([name, rows]) => [name, summarize(rows)])))
for (const [name, rows] of evaluations) {
  const { exact, f1 } = squadMetrics(rows)
  console.log(`${name}: SQuAD's normalised exact match ${exact.toFixed(2)}, F1 ${f1.toFixed(2)}`)
}
