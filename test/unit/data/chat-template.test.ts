import { rmSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { ChatTemplate, strftime } from '../../../lib/data/chat-template.js'
import { Tokenizer } from '../../../lib/data/tokenizer.js'

const fixtures = new URL('../../fixtures/chat/', import.meta.url).pathname
const refused = { name: 'QuantuneError', code: 'ERR_INVALID_ARGUMENT' }
const messages = [
  { role: 'user', content: 'Hi' },
  { role: 'assistant', content: ' Hello ' },
]

t.test('generation tags keep their white-space control', async (t) => {
  const variables = { messages: [{ content: 'x' }] }
  const cases: [string, string, string[]][] = [
    ['a {% generation %} b {% endgeneration %} c', 'a  b  c', [' b ']],
    ['a {%- generation -%} b {%- endgeneration -%} c', 'abc', ['b']],
    ['a\n  {% generation %}\nb\n  {% endgeneration %}\nc', 'a\nb\nc', ['b\n']],
    ['{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}', 'x', ['x']],
    ['{% generation %}open', 'open', ['open']],
    ['none', 'none', []],
  ]
  for (const [source, text, inside] of cases) {
    const rendering = new ChatTemplate(source).render(variables)
    t.equal(rendering.text, text, JSON.stringify(source))
    t.same(
      (rendering.spans ?? []).map(([from, to]) => text.slice(from, to)),
      inside,
    )
  }
  t.throws(() => new ChatTemplate('{% generation %}{{ x }}{% endgeneration %}').render({ x: '\uFDD0' }), refused)
})

t.test('what transformers gives a template', async (t) => {
  const render = (source: string, variables = {}) => new ChatTemplate(source).render(variables).text
  t.equal(render('{{ x | tojson }}', { x: { a: [1, 'é"'], b: null } }), '{"a": [1, "é\\""], "b": null}')
  t.equal(render('{% for i in range(3) %}{{ i }}{% endfor %}'), '012')
  t.equal(render('{% if tools is none %}none{% endif %}{% if missing is defined %}defined{% endif %}', { tools: null }), 'none')
  t.throws(() => render('{{ raise_exception("roles must alternate") }}'), { ...refused, message: /roles must alternate/ })
  t.throws(() => render('{% if %}'), { ...refused, message: /cannot be parsed/ })
})

t.test('the clock is never read', async (t) => {
  const llama3 = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
  t.equal(new ChatTemplate(llama3).render({}).text, '26 Jul 2024')
  t.equal(new ChatTemplate(llama3).render({}, new Date(2025, 0, 2)).text, '02 Jan 2025')
  t.throws(() => new ChatTemplate("{{ strftime_now('%Y') }}").render({}), { ...refused, message: /pass `date`/ })
  t.equal(
    strftime(new Date(2024, 1, 9, 15, 4, 5), '%A %a %B %b %d %m %y %H:%M:%S %I %p %% %q'),
    'Friday Fri February Feb 09 02 24 15:04:05 03 PM % %q',
  )
})

t.test('the final message can be left open', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(`${fixtures}chatml/tokenizer`)
  const open = { tokenize: false, continueFinalMessage: true } as const
  t.equal(tokenizer.applyChatTemplate(messages, open), '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Hello ')
  const trims = '{% for m in messages %}[{{ m.content | trim }}]{% endfor %}'
  t.equal(tokenizer.applyChatTemplate(messages, { ...open, chatTemplate: trims }), '[Hi][Hello')
  t.throws(() => tokenizer.applyChatTemplate(messages, { ...open, chatTemplate: '-' }), refused)
  t.throws(() => tokenizer.applyChatTemplate(messages, { continueFinalMessage: true, addGenerationPrompt: true }), refused)
})

t.test('templates by name, from either file', async (t) => {
  const folder = t.testdir()
  const tokenizer = await Tokenizer.fromFolder(`${fixtures}chatml/tokenizer`)
  await tokenizer.save(folder)
  const write = (chat_template: unknown) => writeFileSync(`${folder}/tokenizer_config.json`, JSON.stringify({ chat_template }))
  const named = [
    { name: 'default', template: 'D' },
    { name: 'tool_use', template: 'T{{ tools | length }}' },
    { name: 'other', template: 'O{{ flavour }}' },
  ]
  write(named)
  const both = await Tokenizer.fromFolder(folder)
  t.match(both.applyChatTemplate(messages, { tokenize: false }), /im_start/, 'the file comes first')
  const folder2 = t.testdir({ sub: {} })
  await tokenizer.save(folder2)
  rmSync(`${folder2}/chat_template.jinja`)
  writeFileSync(`${folder2}/tokenizer_config.json`, JSON.stringify({ chat_template: named }))
  const list = await Tokenizer.fromFolder(folder2)
  t.equal(list.applyChatTemplate(messages, { tokenize: false }), 'D')
  t.equal(list.applyChatTemplate(messages, { tokenize: false, tools: [{}, {}] }), 'T2')
  t.equal(list.applyChatTemplate(messages, { tokenize: false, chatTemplate: 'other', flavour: 1 }), 'O1')
  writeFileSync(`${folder2}/tokenizer_config.json`, JSON.stringify({ chat_template: named.slice(2) }))
  await t.rejects(
    Tokenizer.fromFolder(folder2).then((only) => only.applyChatTemplate(messages)),
    { ...refused, message: /pass one of other/ },
  )
  writeFileSync(`${folder2}/tokenizer_config.json`, '{}')
  await t.rejects(
    Tokenizer.fromFolder(folder2).then((none) => none.applyChatTemplate(messages)),
    { ...refused, message: /no chat template/ },
  )
})

t.test('spans without tags', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(`${fixtures}chatml_plain/tokenizer`)
  const green = (source: string | undefined, chat: { role: string; content: unknown }[]) => {
    const { inputIds, assistantMask } = tokenizer.applyChatTemplate(chat, source === undefined ? {} : { chatTemplate: source })
    return tokenizer.decode(inputIds.filter((_, i) => assistantMask[i]))
  }
  t.equal(green(undefined, messages), ' Hello <|im_end|>')
  t.equal(green(undefined, [messages[0]!, { role: 'assistant', content: '' }]), '<|im_end|>')
  t.equal(
    green(undefined, [messages[0]!, { role: 'assistant', content: '<blah>a<|im_end|>b' }]),
    '<blah>a<|im_end|>b<|im_end|>',
  )
  t.equal(green(undefined, [...messages, ...messages]), ' Hello <|im_end|> Hello <|im_end|>')
  // no end-of-turn token: to the end of the message's rendering
  const bare =
    "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
  t.equal(green(bare, [...messages, messages[0]!]), ' Hello ;')
  // rewritten content: to the message's last special token
  const upper = bare.replace('m.content', 'm.content | upper').replaceAll("';'", "'<|im_end|>;'")
  t.equal(green(upper, messages), ' HELLO <|im_end|>')
  // the prompt alone reads otherwise
  const counts = '{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}'
  t.throws(() => green(counts, messages), { ...refused, message: /messages\[1\] cannot be found/ })
  const strict = `{% if not messages %}{{ raise_exception("no messages") }}{% endif %}${bare}`
  t.throws(() => green(strict, [messages[1]!]), { ...refused, cause: { message: /no messages/ } })
})

t.test('messages that are none', async (t) => {
  const tokenizer = await Tokenizer.fromFolder(`${fixtures}chatml/tokenizer`)
  for (const bad of [[], null, 'Hi', [{ content: 'x' }], [null]]) {
    t.throws(() => tokenizer.applyChatTemplate(bad as never), refused)
  }
})
