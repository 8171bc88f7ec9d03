// Draws docs/prefix-tree.svg: two contexts with three questions each, from the tiny data set, as the batch that training computes.
// usage: npm run build:ts && node dist/scripts/draw-prefix-tree.js
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { toExample } from '../examples/quickstart/prompt.js'
import { readSquad } from '../examples/squad/data.js'
import { treeToSvg } from '../lib/data/tree-picture.js'
import { ChatCollator, Tokenizer } from '../lib/index.js'

/** Compiled, this program lies in dist/scripts. */
const ROOT = new URL('../../', import.meta.url)
const path = (name: string) => fileURLToPath(new URL(name, ROOT))

const tokenizer = await Tokenizer.fromFolder(path('examples/tiny/model'))
const collator = new ChatCollator(tokenizer)
const contexts = (await readSquad(path('examples/tiny/data/train.json'))).slice(0, 2)
const batch = collator.collate(contexts.flatMap((questions) => questions.slice(0, 3).map(toExample)))
const textOf = (ids: readonly number[]) => Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id))).toString('utf8')
writeFileSync(path('docs/prefix-tree.svg'), treeToSvg(batch, { textOf }))
console.log(collator.explain(contexts.flatMap((questions) => questions.slice(0, 3).map(toExample))))
