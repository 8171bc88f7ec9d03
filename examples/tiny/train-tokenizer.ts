/**
 * Trains the tiny model's tokenizer on its chat corpus and writes it in the Hugging Face layout.
 *
 * usage: node dist/examples/tiny/train-tokenizer.js [FOLDER]
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { PATTERN, trainBpe } from './bpe.js'
import { makeChat } from './corpus.js'
import { Random } from './random.js'
import { WORDS } from './world.js'

const SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
const VOCABULARY = 2560
const CHATS = 3000

/** ChatML, as SmolLM2 and Qwen use it; the tags say where the assistant speaks. */
const CHAT_TEMPLATE =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}" +
  "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}" +
  '{% endfor %}' +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

/** Text with the signs and words that fine-tuning needs but the corpus seldom has, so that they are no strings of single bytes. */
const PROSE = [
  'You are a helpful assistant. Extract from the following context the minimal span word for word that best answers the question.',
  'Give the answer in JSON format as follows: ```json\n{\n  "answer": ...\n}\n```\nIf the answer is not in the context, the answer should be "?".',
]

export function tokenizerFiles(): { tokenizer: object; config: object } {
  const random = new Random(7)
  const texts = Array.from({ length: CHATS }, () =>
    ['system', ...makeChat(random, new Set()).flatMap(({ role, content }) => [role, content])].join('\n'),
  )
  for (let i = 0; i < CHATS / 4; i++) texts.push(...PROSE)
  // Every word is a token of its own without a space before it too, as it stands in JSON.
  for (const word of WORDS) for (let i = 0; i < 50; i++) texts.push(word, ` ${word}`)
  const { vocab, merges } = trainBpe(texts, VOCABULARY - SPECIAL.length)
  const first = Object.keys(vocab).length
  const added = SPECIAL.map((content, i) => ({
    id: first + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }))
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false }
  const words = { type: 'Split', pattern: { Regex: PATTERN }, behavior: 'Isolated', invert: false }
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [words, byteLevel] },
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      vocab: { ...vocab, ...Object.fromEntries(added.map(({ content, id }) => [content, id])) },
      merges,
    },
  }
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: '<|endoftext|>',
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    unk_token: '<|endoftext|>',
    add_prefix_space: false,
    clean_up_tokenization_spaces: false,
    model_max_length: 1024,
    chat_template: CHAT_TEMPLATE,
  }
  return { tokenizer, config }
}

export function writeTokenizer(folder: string): void {
  mkdirSync(folder, { recursive: true })
  const { tokenizer, config } = tokenizerFiles()
  writeFileSync(join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer)}\n`)
  writeFileSync(join(folder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`)
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) writeTokenizer(process.argv[2] ?? 'examples/tiny/model')
