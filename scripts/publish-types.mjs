// After tsc: hand-written declarations are no output of its, so they are copied beside the generated ones that name them; typed-emitter,
// a development dependency needed for types alone, is inlined with its licence.
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'

const from = new URL('../types/', import.meta.url)
const to = new URL('../dist/types/', import.meta.url)
const typedEmitter = new URL('../node_modules/typed-emitter/', import.meta.url)

mkdirSync(to, { recursive: true })
for (const name of readdirSync(from)) copyFileSync(new URL(name, from), new URL(name, to))

const read = (name) => readFileSync(new URL(name, typedEmitter), 'utf8')
writeFileSync(new URL('typed-emitter.d.ts', to), `/*\n${read('LICENSE').trim()}\n*/\n${read('index.d.ts')}`)
const events = readFileSync(new URL('events.d.ts', from), 'utf8')
writeFileSync(new URL('events.d.ts', to), events.replaceAll("import('typed-emitter')", "import('./typed-emitter.js')"))
