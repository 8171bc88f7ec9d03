/** What users of transformers, PEFT and TRL write by habit, and what JavaScript does not check: refused by name, nothing ignored. */
import { fileURLToPath } from 'node:url'
import t from 'tap'
import {
  Batch,
  ChatCollator,
  Dataset,
  exactMatch,
  Generator,
  Model,
  type QuantuneError,
  squadMetrics,
  Trainer,
} from '../../lib/index.js'

const source = fileURLToPath(new URL('../../examples/tiny/model', import.meta.url))
const messages = [
  { role: 'user', content: 'a' },
  { role: 'assistant', content: 'b' },
]

/** A value that the types would refuse. */
const untyped = (value: unknown) => value as never

async function refusal(call: () => unknown): Promise<Pick<QuantuneError, 'code' | 'message'>> {
  try {
    await call()
  } catch (error) {
    return error as QuantuneError
  }
  return { code: 'accepted' as never, message: '' }
}

t.test('calls', async (t) => {
  const model = await Model.fromPretrained(source, { device: 'cpu' })
  t.teardown(() => model.dispose())
  model.addAdapter({ r: 2 })
  const { tokenizer } = model
  const batch = Batch.pack([{ inputIds: [1, 2], labels: [-100, 2] }])
  const args = { outputDir: t.testdir(), maxSteps: 1, saveStrategy: 'no' as const, disableProgress: true }
  const train = (options: object, call?: object) =>
    new Trainer(untyped({ model, trainDataset: [{ messages }], args, ...options })).train(untyped(call))
  const collator = (collate: () => unknown) => ({ collator: { collate } })

  const cases: [string, () => unknown, RegExp][] = [
    ['device_map', () => Model.fromPretrained(source, untyped({ device_map: 'auto' })), /"device_map"; it is called device$/],
    ['torch_dtype', () => Model.fromPretrained(source, untyped({ torch_dtype: 'x' })), /it is called dtype$/],
    ['device', () => Model.fromPretrained(source, { device: untyped('gpu') }), /device: expected 'auto', 'cpu', /],
    ['addAdapter null', () => model.addAdapter(untyped(null), 'x'), /LoraConfig: expected an object, received null/],
    ['addAdapter 5', () => model.addAdapter(untyped(5), 'x'), /LoraConfig: expected an object, received 5/],
    ['task_type', () => model.addAdapter(untyped({ task_type: 'CAUSAL_LM' }), 'x'), /"task_type"; leave it out/],
    ['all_linear', () => model.addAdapter({ targetModules: 'all_linear' }, 'x'), /did you mean 'all-linear'\?/],
    ['layer 9', () => model.addAdapter({ layersToTransform: [9] }, 'x'), /layersToTransform: \[9\] .* the layers are 0 to 3/],
    [
      'nothing left',
      () => model.addAdapter({ targetModules: ['q_proj'], excludeModules: ['q_proj'] }, 'x'),
      /no layer is left of those it names/,
    ],
    ['idle pattern', () => model.addAdapter({ rankPattern: { qproj: 4 } }, 'x'), /rankPattern: "qproj" matches none/],
    [
      'share_prefixes',
      () => Batch.pack([{ inputIds: [1] }], untyped({ share_prefixes: true })),
      /did you mean "sharePrefixes"\?/,
    ],
    [
      'attention_mask',
      () => Batch.fromPadded(untyped({ inputIds: [[1]], attention_mask: [[1]] })),
      /PaddedBatch: unknown option "attention_mask"; did you mean "attentionMask"\?/,
    ],
    ['is_trainable', () => model.loadAdapter('.', untyped({ is_trainable: true })), /it is called trainable$/],
    ['resume_from_checkpoint', () => train({}, { resume_from_checkpoint: true }), /did you mean "resumeFromCheckpoint"\?/],
    ['resume 5', () => train({}, { resumeFromCheckpoint: 5 }), /resumeFromCheckpoint: expected true or false or a string/],
    ['train signal', () => train({}, { signal: {} }), /TrainOptions.signal: expected AbortSignal/],
    [
      'evaluate signal',
      () => new Trainer({ model, evalDataset: [{ messages }] }).evaluate(untyped({ abort: 1 })),
      /unknown option "abort"/,
    ],
    ['tokenizer', () => train({ tokenizer }), /TrainerOptions: unknown option "tokenizer"; the collator has it/],
    ['bf16', () => train({ args: { ...args, bf16: true } }), /"bf16"; the type of compute is chosen at loading/],
    ['a path', () => train({ trainDataset: 'chats.jsonl' }), /trainDataset: expected an array.*Dataset\.fromJsonl/],
    [
      'a text',
      () => train({ trainDataset: ['once upon'] }),
      /examples\[0\] of the batch: .* a text is \{ text \} \(it is 'once upon'\)/,
    ],
    [
      'input_ids',
      () => train({ trainDataset: [{ input_ids: [1, 2] }] }),
      /must have messages, .* \(it is \{ input_ids: \[ 1, 2 \] \}\)/,
    ],
    ['no iterable', () => train({ trainDataset: () => 5 }), /trainDataset: expected the function to return an async iterable/],
    ['a generator', () => train({ trainDataset: () => [{ messages }] }), /as an async function\* does/],
    [
      'no eval iterable',
      () => new Trainer({ model, evalDataset: untyped(() => []) }).evaluate(),
      /evalDataset: expected the function/,
    ],
    ['no batch', () => train(collator(() => undefined)), /collator: expected collate to return a batch/],
    ['half a batch', () => train(collator(() => ({ inputIds: [1] }))), /collator: expected collate to return a batch/],
    ['split', () => Dataset.from([1, 2]).trainTestSplit(untyped({ test_size: 1 })), /did you mean "testSize"\?/],
    ['split nothing', () => Dataset.from([1, 2]).trainTestSplit(untyped(undefined)), /expected an object, received undefined/],
    ['forward options', () => model.forward(batch, untyped({ output_rows: 'all' })), /did you mean "outputRows"\?/],
    ['forward junk', () => model.forward(untyped({ inputIds: [1] })), /forward: expected a batch/],
    ['encode', () => tokenizer.encode('a', untyped({ add_special_tokens: false })), /did you mean "addSpecialTokens"\?/],
    ['decode', () => tokenizer.decode([1], untyped({ skip_special_tokens: true })), /did you mean "skipSpecialTokens"\?/],
    ['decode 5', () => tokenizer.decode(untyped(5)), /ids must be a list of token ids, got number/],
    [
      'template',
      () => tokenizer.applyChatTemplate(messages, { add_generation_prompt: true }),
      /did you mean "addGenerationPrompt"\?/,
    ],
    ['score', () => model.score('a', untyped('b')), /score: expected a list of continuations for prompt 0/],
    ['generator', () => new Generator(untyped({})), /Generator: expected a Model/],
    ['collator', () => new ChatCollator(untyped(undefined)), /ChatCollator: expected a Tokenizer/],
    ['exactMatch', () => exactMatch('a', untyped('a')), /answers: expected a list of strings, received string/],
    ['squadMetrics', () => squadMetrics(untyped([{ answer: 'a' }])), /answers: expected a list of strings, received undefined/],
  ]
  for (const [name, call, message] of cases) t.match(await refusal(call), { code: 'ERR_INVALID_ARGUMENT', message }, name)

  t.same(await model.score('a', []), [], 'no continuation, no score')
  t.equal((await train({})).globalStep, 1, 'the model works on')
})

t.test('training a quantized model without an adapter leaves it as it was', async (t) => {
  const model = await Model.fromPretrained(source, { device: 'cpu', quantization: 'nf4' })
  t.teardown(() => model.dispose())
  const args = { outputDir: t.testdir(), maxSteps: 1, saveStrategy: 'no' as const, disableProgress: true }
  const train = () => new Trainer({ model, trainDataset: [{ messages }], args }).train()
  t.match(await refusal(train), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /nf4 weights cannot be trained and no adapter is active: call addAdapter first/,
  })
  model.addAdapter({ r: 2, targetModules: ['q_proj'] })
  t.same(
    model.trainableParameters().filter(({ name }) => !name.includes('lora_')),
    [],
    'only the adapter is trained then',
  )
  t.equal((await train()).globalStep, 1)
})
