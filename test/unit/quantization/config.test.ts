import t from 'tap'
import { namesModule, parseQuantization, parseStoredQuantization } from '../../../lib/quantization/config.js'

const nf4 = { type: 'nf4', blockSize: 64, doubleQuant: true, skipModules: ['lm_head'] }

t.test('the option', async (t) => {
  t.equal(parseQuantization(undefined), null)
  t.equal(parseQuantization('none'), null)
  t.same(parseQuantization('nf4'), nf4)
  t.same(parseQuantization({ type: 'fp4', blockSize: 128, doubleQuant: false, skipModules: [] }), {
    type: 'fp4',
    blockSize: 128,
    doubleQuant: false,
    skipModules: [],
  })
  const int8 = { type: 'int8', threshold: 6, skipModules: ['lm_head'] }
  t.same(parseQuantization('int8'), int8)
  t.same(parseQuantization({ type: 'int8', threshold: 0, skipModules: [] }), { ...int8, threshold: 0, skipModules: [] })
  const refused = { code: 'ERR_INVALID_ARGUMENT' }
  t.throws(() => parseQuantization({ type: 'int8', threshold: -1 }), { ...refused, message: /threshold/ })
  t.throws(() => parseQuantization({ type: 'int8', blockSize: 64 } as never), { ...refused, message: /blockSize/ })
  t.throws(() => parseQuantization({ type: 'nf4', threshold: 6 } as never), { ...refused, message: /threshold/ })
  t.throws(() => parseQuantization('nf5' as 'nf4'), { code: 'ERR_INVALID_ARGUMENT' })
  t.throws(() => parseQuantization({ type: 'nf4', blockSize: 32 as 64 }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /blockSize/,
  })
  t.throws(() => parseQuantization({ type: 'nf4', block_size: 64 } as never), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /blockSize/,
  })
})

t.test('a bitsandbytes config, as an option or in config.json', async (t) => {
  const config = {
    load_in_4bit: true,
    bnb_4bit_quant_type: 'nf4',
    bnb_4bit_use_double_quant: true,
    bnb_4bit_compute_dtype: 'bfloat16',
  } as const
  t.same(parseQuantization(config), nf4)
  t.same(parseQuantization({ load_in_4bit: true }), { ...nf4, type: 'fp4', doubleQuant: false }, "bitsandbytes' defaults")
  t.same(parseQuantization({ ...config, llm_int8_skip_modules: ['o_proj'] })?.skipModules, ['o_proj'])
  t.same(
    parseStoredQuantization({ quantization_config: { ...config, quant_method: 'bitsandbytes', _load_in_4bit: true } }),
    nf4,
  )
  t.equal(parseStoredQuantization({}), null)
  const eight = { load_in_8bit: true, load_in_4bit: false, bnb_4bit_quant_type: 'fp4' } as const
  t.same(parseQuantization({ load_in_8bit: true }), { type: 'int8', threshold: 6, skipModules: ['lm_head'] })
  t.same(
    parseStoredQuantization({
      quantization_config: {
        ...eight,
        ...{ llm_int8_threshold: 4.5, llm_int8_skip_modules: ['o_proj'], llm_int8_enable_fp32_cpu_offload: false },
        quant_method: 'bitsandbytes',
      },
    }),
    { type: 'int8', threshold: 4.5, skipModules: ['o_proj'] },
  )
  t.throws(() => parseQuantization({ ...config, load_in_8bit: true }), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /exclude each other/,
  })
  t.throws(() => parseQuantization({ ...eight, llm_int8_has_fp16_weight: true }), {
    code: 'ERR_UNSUPPORTED_QUANTIZATION',
    message: /llm_int8_has_fp16_weight/,
  })
  for (const [method, name] of [
    ['gptq', /GPTQ/],
    ['awq', /AWQ/],
    ['fp8', /FP8/],
    ['hqq', /hqq/],
  ] as const) {
    const refused = { code: 'ERR_UNSUPPORTED_QUANTIZATION', message: name, details: { method } }
    t.throws(() => parseStoredQuantization({ quantization_config: { quant_method: method } }), refused)
    t.throws(() => parseQuantization({ quant_method: method } as never), refused)
  }
  t.throws(() => parseStoredQuantization({ quantization_config: {} }), { code: 'ERR_UNSUPPORTED_QUANTIZATION' })
})

t.test('names of modules', async (t) => {
  t.ok(namesModule(['lm_head'], 'lm_head'))
  t.ok(namesModule(['q_proj'], 'model.layers.0.self_attn.q_proj'))
  t.ok(namesModule(['model.layers.0'], 'model.layers.0.self_attn.q_proj'))
  t.notOk(namesModule(['proj'], 'model.layers.0.self_attn.q_proj'))
  t.notOk(namesModule(['model.layers.1'], 'model.layers.10.self_attn.q_proj'))
})
