import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { type EvaluationRow, Model, readEvaluation, Tokenizer } from '../../lib/index.js'
import { compile, root } from '../support/compile.js'

/** The five programs of examples/squad one after the other, as a person starts them, on a tiny random model. */

const example = (path: string) => join(root, 'examples', path)
const folder = t.testdir({ data: {} })
const output = join(folder, 'run')
const model = join(folder, 'model')
const config = join(folder, 'config.yaml')

interface Squad {
  data: { paragraphs: { qas: unknown[] }[] }[]
}

/** The first contexts of the bundled data, three questions each. */
function cut(name: 'train' | 'dev', contexts: number): void {
  const { data, ...rest } = JSON.parse(readFileSync(example(`tiny/data/${name}.json`), 'utf8')) as Squad
  const paragraphs = data
    .flatMap((article) => article.paragraphs)
    .slice(0, contexts)
    .map((paragraph) => ({ ...paragraph, qas: paragraph.qas.slice(0, 3) }))
  writeFileSync(join(folder, 'data', `${name}.json`), JSON.stringify({ ...rest, data: [{ title: name, paragraphs }] }))
}

async function makeModel(): Promise<void> {
  const tokenizer = await Tokenizer.fromFolder(example('tiny/model'))
  const sizes = { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 }
  const rest = { max_position_embeddings: 2048, vocab_size: tokenizer.vocabSize, tie_word_embeddings: true }
  await using made = await Model.fromConfig({ model_type: 'llama', ...sizes, ...rest }, { device: 'cpu', tokenizer, seed: 1 })
  await made.savePretrained(model)
}

function start(program: string, args: readonly string[]): ChildProcess & { text: string } {
  const child = spawn(process.execPath, [join(compiled, 'examples', 'squad', `${program}.js`), '--config', config, ...args])
  const started = Object.assign(child, { text: '' })
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (started.text += data))
  return started
}

async function run(program: string, ...args: string[]): Promise<string> {
  const child = start(program, args)
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`${program} ended with ${code}: ${child.text}`)
  return child.text
}

const idsOf = (rows: readonly EvaluationRow[]) => rows.map(({ id }) => id)

const compiled = compile('e2e', ['lib', 'examples/squad'])
cpSync(example('squad/config.yaml'), join(compiled, 'examples', 'squad', 'config.yaml'))
cut('train', 4)
cut('dev', 4)
await makeModel()
mkdirSync(output)
const settings = {
  model,
  data: join(folder, 'data'),
  output,
  load: { device: 'cpu', quantization: 'nf4' },
  dataset: { validation: 0.25, turns: 'multi', reasoningTokens: 2 },
  lora: { r: 4 },
  training: { maxSteps: 3, perDeviceTrainBatchSize: 3, loggingSteps: 1, evalSteps: 2, warmupSteps: 0 },
  maxLength: 2048,
  evaluation: { batchSize: 3, generation: { maxNewTokens: 8 } },
}
writeFileSync(config, JSON.stringify(settings)) // JSON is YAML

t.test('create-dataset, show-labels', async (t) => {
  t.match(await run('create-dataset'), /train\.jsonl: 9 questions.*validation\.jsonl: 3 questions.*test\.jsonl: 12 questions/s)
  const shown = await run('show-labels', '--count', '1')
  const [green, reset] = ['\x1b[32m', '\x1b[0m']
  const learned = shown
    .split(green)
    .slice(1)
    .map((text) => text.split(reset)[0]!)
  t.match(learned, [/^(yes|no)<\|im_end\|>$/, /^```json.*```<\|im_end\|>$/s], 'answers are learned, reasoning tokens are not')
  t.equal(shown.split(`<blah><blah>${green}`).length, 3)
})

t.test('train', async (t) => {
  t.match(await run('train'), /completed after 3 steps, mean loss \d/)
  for (const file of ['adapter/adapter_model.safetensors', 'adapter/tokenizer.json', 'curve.svg', 'checkpoint-3'])
    t.ok(existsSync(join(output, file)), file)
  const log = readFileSync(join(output, 'log.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.equal(log.filter(({ loss }) => loss !== undefined).length, 3)
  t.ok(log.some(({ eval_loss }) => eval_loss > 0))
})

t.test('an evaluation that is killed goes on where it was', async (t) => {
  const path = join(output, 'after.csv')
  const killed = start('evaluate', ['--batch-size', '1'])
  const closed = once(killed, 'close')
  while (killed.exitCode === null && !(existsSync(path) && statSync(path).size > 2000)) await setTimeout(5)
  killed.kill('SIGKILL')
  await closed
  const before = await readEvaluation(path)
  t.ok(before.length > 0, killed.text)
  t.match(await run('evaluate'), new RegExp(`after\\.csv has ${before.length} answers already`))
  const rows = await readEvaluation(path)
  t.same(rows.slice(0, before.length), before)
  t.equal(new Set(idsOf(rows)).size, 12)
  t.equal(rows.length, 12)
  const test = readFileSync(join(output, 'dataset', 'test.jsonl'), 'utf8')
    .trim()
    .split('\n')
  t.same(
    idsOf(rows),
    test.map((line) => JSON.parse(line).id),
  )
})

t.test('the base, and the table of both', async (t) => {
  await run('evaluate', '--adapter', 'none', '--limit', '3')
  t.equal((await readEvaluation(join(output, 'before.csv'))).length, 3)
  const table = await run('summarize')
  t.match(table, /after.*before|before.*after/s)
  t.match(table, /after: SQuAD's normalised exact match \d+\.\d\d, F1 \d+\.\d\d/)
})

t.test('what the base said of other things is still likely', async (t) => {
  const mean = (name: string) =>
    new RegExp(`${name}: mean log-probability -\\d+\\.\\d+ a token, over \\d+ tokens of 20 answers`)
  const shown = await run('general')
  t.match(shown, mean('before'))
  t.match(shown, mean('after'))
})
