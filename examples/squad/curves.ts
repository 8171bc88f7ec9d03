// Draws the loss curves of several runs into one picture: curves OUT.svg TITLE NAME=LOG.jsonl…
import { writeCurves } from './curve.js'

const [picture, title, ...runs] = process.argv.slice(2)
if (picture === undefined || title === undefined || runs.length === 0 || runs.some((run) => !run.includes('='))) {
  console.error('usage: curves OUT.svg TITLE NAME=LOG.jsonl…')
  process.exit(1)
}
await writeCurves(
  Object.fromEntries(runs.map((run) => [run.slice(0, run.indexOf('=')), run.slice(run.indexOf('=') + 1)])),
  picture,
  title,
)
