import t from 'tap'
import { z } from 'zod'
import { nearest, parseOptions } from '../../lib/options.js'

const schema = z.object({
  learningRate: z.number().positive().default(5e-5),
  maxSteps: z.int().min(-1).default(-1),
  strategy: z.enum(['no', 'steps', 'epoch']).default('no'),
  gradientCheckpointing: z.union([z.boolean(), z.literal('auto')]).default(false),
  quantization: z
    .union([z.enum(['none', 'nf4']), z.strictObject({ type: z.literal('nf4'), blockSize: z.int().default(64) })])
    .optional(),
  targets: z.array(z.string()).min(1).optional(),
  model: z.custom<Date>((v) => v instanceof Date, 'expected a Date').optional(),
})

const refused = (value: unknown) => {
  try {
    parseOptions(schema, value, 'TrainingArguments')
  } catch (error) {
    return error
  }
  throw new Error('accepted')
}

t.test('defaults fill in, undefined counts as absent', async (t) => {
  t.match(parseOptions(schema, undefined, 'TrainingArguments'), { learningRate: 5e-5, maxSteps: -1, strategy: 'no' })
  t.equal(parseOptions(schema, { learningRate: undefined }, 'TrainingArguments').learningRate, 5e-5)
  t.same(parseOptions(schema, { quantization: { type: 'nf4' } }, 'X').quantization, { type: 'nf4', blockSize: 64 })
})

t.test('an unknown key is refused and the nearest known one suggested', async (t) => {
  t.match(refused({ learning_rate: 1 }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: 'TrainingArguments: unknown option "learning_rate"; did you mean "learningRate"?',
    details: { parameter: 'TrainingArguments.learning_rate', suggestion: 'learningRate' },
  })
  t.match(refused({ maxStep: 1 }), { message: /did you mean "maxSteps"/ })
  t.match(refused({ quantization: { type: 'nf4', block_size: 64 } }), {
    message: 'TrainingArguments.quantization: unknown option "block_size"; did you mean "blockSize"?',
  })
  t.match(refused({ whatever: 1 }), { message: /unknown option "whatever"; known are learningRate, / })
})

t.test('a wrong value names the parameter, what was expected and what came', async (t) => {
  const cases: [unknown, string][] = [
    [{ learningRate: '1e-3' }, "TrainingArguments.learningRate: expected a number, received the string '1e-3'"],
    [{ learningRate: 0 }, 'TrainingArguments.learningRate: expected a number > 0, received 0'],
    [{ learningRate: Number.NaN }, 'TrainingArguments.learningRate: expected a number, received NaN'],
    [{ maxSteps: 1.5 }, 'TrainingArguments.maxSteps: expected an integer, received 1.5'],
    [{ strategy: 'never' }, "TrainingArguments.strategy: expected 'no', 'steps' or 'epoch', received the string 'never'"],
    [{ gradientCheckpointing: 1 }, "TrainingArguments.gradientCheckpointing: expected true or false or 'auto', received 1"],
    [{ quantization: { type: 'nf4', blockSize: 'x' } }, 'TrainingArguments.quantization.blockSize: expected a number'],
    [{ targets: [] }, 'TrainingArguments.targets: expected an array of length >= 1, received an array of length 0'],
    [{ targets: ['a', 2] }, 'TrainingArguments.targets.1: expected a string, received 2'],
    [{ model: new Map() }, 'TrainingArguments.model: expected a Date, received an instance of Map'],
    [null, 'TrainingArguments: expected an object, received null'],
    [[], 'TrainingArguments: expected an object, received an array of length 0'],
  ]
  for (const [value, message] of cases) {
    const error = refused(value) as { code: string; message: string }
    t.equal(error.code, 'ERR_INVALID_ARGUMENT')
    t.ok(error.message.startsWith(message), `${error.message} starts with ${message}`)
  }
})

t.test('nearest', async (t) => {
  t.equal(nearest('lora_alpha', ['r', 'loraAlpha', 'loraDropout']), 'loraAlpha')
  t.equal(nearest('loraAlhpa', ['r', 'loraAlpha', 'loraDropout']), 'loraAlpha')
  t.equal(nearest('completelyDifferent', ['r', 'seed']), undefined)
})
