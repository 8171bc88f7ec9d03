// Peer baseline: node-llama-cpp on the CPU. It must be installed in FOLDER/node_modules.
// usage: node node_llama_cpp.mjs FOLDER MODEL.gguf [promptTokens] [newTokens] [threads]
import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const [folder, file, prompt = '512', tokens = '64', threads = '2'] = process.argv.slice(2)
const entry = createRequire(resolve(folder, 'package.json')).resolve('node-llama-cpp')
const { getLlama } = await import(pathToFileURL(entry).href)
const llama = await getLlama({ gpu: false, maxThreads: +threads, build: 'never', logLevel: 'error' })
const model = await llama.loadModel({ modelPath: file })
const context = await model.createContext({ contextSize: 2048, threads: +threads })
const sequence = context.getSequence()
const ids = Array.from({ length: +prompt }, (_, i) => 100 + ((i * 37) % 4000))

async function run() {
  await sequence.clearHistory()
  const begin = performance.now()
  let first = 0
  let count = 0
  for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    if (count === 0) first = performance.now()
    if (++count > +tokens) break
  }
  const end = performance.now()
  return { prefill: +prompt / ((first - begin) / 1000), decode: +tokens / ((end - first) / 1000) }
}

await run()
const runs = [await run(), await run(), await run()]
const best = (key) => Math.max(...runs.map((figures) => figures[key]))
console.log(JSON.stringify({ prefill_tok_s: best('prefill'), decode_tok_s: best('decode') }))
process.exit(0)
