import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
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
