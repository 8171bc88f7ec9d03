import t from 'tap'
import { newTokensFor, resolveConfig } from '../../../lib/generation/config.js'

const resolve = (options?: object, file: Record<string, unknown> | null = null) =>
  resolveConfig(options, { file, eosTokenIds: [2] })

t.test('defaults are transformers’', async (t) => {
  const config = resolve()
  t.match(config, { numBeams: 1, doSample: false, temperature: 1, topK: 50, topP: 1, lengthPenalty: 1, earlyStopping: false })
  t.same(config.eosTokenId, [2])
  t.equal(config.maxNewTokens, null)
  t.equal(newTokensFor(config, 10, 2048), 512)
  t.equal(newTokensFor(config, 2000, 2048), 48)
})

t.test('generation_config.json comes before the defaults and after the options', async (t) => {
  const file = {
    do_sample: true,
    temperature: 0.6,
    top_p: 0.9,
    eos_token_id: [1, 2],
    max_new_tokens: 7,
    suppress_tokens: [5],
    top_k: null,
  }
  t.match(resolve({}, file), { doSample: true, temperature: 0.6, topP: 0.9, topK: 50, maxNewTokens: 7, suppressTokens: [5] })
  t.same(resolve({}, file).eosTokenId, [1, 2])
  t.match(resolve({ doSample: false, maxNewTokens: 9 }, file), { doSample: false, maxNewTokens: 9, temperature: 0.6 })
  t.same(resolve({ suppressTokens: [8, 5] }, file).suppressTokens, [5, 8])
  t.same(resolve({ eosTokenId: [] }, file).eosTokenId, [])
  t.same(resolve({ eosTokenId: 4 }, file).eosTokenId, [4])
  t.equal(resolve({ temperature: undefined }, file).temperature, 0.6)
  t.equal(resolve({}, { temperature: -1 }).temperature, 1, 'nonsense in a file is passed over')
})

t.test('max_length of the file counts the prompt, and an option overrules it', async (t) => {
  t.equal(newTokensFor(resolve({}, { max_length: 100 }), 40, 2048), 60)
  t.equal(newTokensFor(resolve({}, { max_length: 20 }), 40, 2048), 512)
  t.equal(newTokensFor(resolve({ maxNewTokens: 90 }, { max_length: 100 }), 40, 2048), 90)
})

t.test('beams asked for switch off sampling that the file asks for', async (t) => {
  t.equal(resolve({ numBeams: 4 }, { do_sample: true }).doSample, false)
})

t.test('wrong options are refused and named', async (t) => {
  const refused = (options: object, message: RegExp) =>
    t.throws(() => resolve(options), { code: 'ERR_INVALID_ARGUMENT', message })
  refused({ max_new_tokens: 3 }, /maxNewTokens/)
  refused({ maxNewTokens: 0 }, /maxNewTokens/)
  refused({ temperature: 0 }, /temperature/)
  refused({ topP: 1.5 }, /topP/)
  refused({ stopStrings: [''] }, /stopStrings/)
  refused({ earlyStopping: 'always' }, /earlyStopping/)
  refused({ numReturnSequences: 2 }, /numReturnSequences/)
  refused({ numBeams: 2, numReturnSequences: 3 }, /numReturnSequences/)
  refused({ numBeams: 2, doSample: true }, /exclude/)
  refused({ minNewTokens: 5, maxNewTokens: 4 }, /minNewTokens/)
  refused({ signal: {} }, /signal/)
  t.equal(resolve({ doSample: true, numReturnSequences: 3 }).numReturnSequences, 3)
})
