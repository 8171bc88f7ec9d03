import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import ts from 'typescript'
import { compile, root } from '../support/compile.js'

/** The quickstart and the README's program, as a person starts them, on the model that the repository carries. */

const compiled = compile('programs', ['lib', 'examples'])
const tiny = join(root, 'examples', 'tiny')

async function run(cwd: string, program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, [join(compiled, 'examples', program), ...args], { cwd })
  return stdout
}

t.test('the quickstart, cut short', async (t) => {
  const output = join(t.testdir(), 'quickstart')
  const screen = await run(root, 'quickstart/main.js', '--output', output, '--max-steps', '40', '--tiny', tiny)
  t.match(screen, /base model {2}.+/)
  t.match(screen, /step {2}20: /, 'the question is asked again on the way')
  t.match(screen, /10 beams/)
  const [before, after] = [...screen.matchAll(/│ (?:before|after) +│ +([\d.]+) │ +([\d.]+)/g)]
    .slice(-2)
    .map((row) => Number(row[1]))
  t.equal(before, 0, 'the base model does not keep the format')
  t.ok(after! > 90, `${after} % valid JSON after 40 steps`)
  for (const name of ['adapter/adapter_model.safetensors', 'before.csv', 'after.csv', 'curve.svg', 'log.jsonl']) {
    t.ok(existsSync(join(output, name)), name)
  }
})

t.test('the program of the README', async (t) => {
  const source = readFileSync(join(root, 'examples/fine-tune.ts'), 'utf8')
  const program = source.slice(source.indexOf('import')).replace('../lib/index.js', 'quantune')
  const shown = readFileSync(join(root, 'README.md'), 'utf8').replace(/ \/\/ a folder, or an id on the Hugging Face Hub/, '')
  t.ok(shown.includes(program), 'stands there as it is in examples/fine-tune.ts')

  const folder = t.testdir()
  const chats = ['What is your name?', 'Who are you?', 'What do people call you?'].map((content) => ({
    messages: [
      { role: 'user', content },
      { role: 'assistant', content: 'The text says "kite".' },
    ],
  }))
  writeFileSync(join(folder, 'chats.jsonl'), chats.map((chat) => `${JSON.stringify(chat)}\n`).join(''))
  const screen = await run(folder, 'fine-tune.js', join(tiny, 'model'), 'chats.jsonl', 'What is your name?')
  t.match(screen, /after: {2}The text says "kite"\./)
  t.ok(existsSync(join(folder, 'runs/fine-tune/adapter/adapter_config.json')))
})

t.test('the programs of the guide', async (t) => {
  const guide = readFileSync(join(root, 'docs/guide.md'), 'utf8')
  const blocks = [...guide.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code)
  t.ok(blocks.length > 3, `${blocks.length} programs`)
  // One after the other they are one program; what the text leaves to the reader stands before it.
  const code = ["const batches = [[{ question: 'What is it?', answer: 'A kite.' }]]", ...blocks].join('\n')
  const importing = (from: string) => code.replaceAll("from 'quantune'", `from '${from}'`)

  const path = join(compiled, 'guide.ts')
  writeFileSync(path, importing('../lib/index.js'))
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [] }, ts.sys, root)
  const program = ts.createProgram([path], { ...options, noEmit: true, incremental: false, noUnusedLocals: false })
  const problems = ts.getPreEmitDiagnostics(program, program.getSourceFile(path))
  t.same(
    problems.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' ')),
    [],
    'type-checks',
  )

  const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext }
  const onTiny = importing('./lib/index.js').replace(/'HuggingFaceTB[^']*'/, () => JSON.stringify(join(tiny, 'model')))
  writeFileSync(join(compiled, 'guide.js'), ts.transpileModule(onTiny, { compilerOptions }).outputText)
  const folder = t.testdir()
  const chat = {
    messages: [
      { role: 'user', content: 'Who are you?' },
      { role: 'assistant', content: 'A kite.' },
    ],
  }
  writeFileSync(join(folder, 'chats.jsonl'), `${JSON.stringify(chat)}\n`.repeat(40))
  await promisify(execFile)(process.execPath, [join(compiled, 'guide.js')], { cwd: folder })
  t.match(readFileSync(join(folder, 'runs/answers/log.jsonl'), 'utf8'), /"step":9\b/)
  t.ok(existsSync(join(folder, 'runs/answers/adapter/adapter_model.safetensors')))
})
