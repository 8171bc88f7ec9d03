// Writes a GGUF file of SmolLM2-135M's shape with random Q4_0 weights, to time peers that read GGUF.
// usage: node random_gguf.mjs OUT.gguf
import { closeSync, openSync, writeSync } from 'node:fs'

const [hidden, inner, layers, heads, kvHeads, vocabulary, headSize] = [576, 1536, 30, 9, 3, 49152, 64]
const ALIGNMENT = 32
// GGUF's numbers of value types and of tensor types.
const UINT32 = 4
const FLOAT32 = 6
const STRING = 8
const ARRAY = 9
const INT32 = 5
const F32 = 0
const Q4_0 = 2

const u32 = (x) => Buffer.from(Uint32Array.of(x).buffer)
const u64 = (x) => Buffer.from(BigUint64Array.of(BigInt(x)).buffer)
const f32 = (x) => Buffer.from(Float32Array.of(x).buffer)
const text = (s) => Buffer.concat([u64(Buffer.byteLength(s)), Buffer.from(s)])
const values = {
  u32: (x) => [u32(UINT32), u32(x)],
  f32: (x) => [u32(FLOAT32), f32(x)],
  text: (x) => [u32(STRING), text(x)],
  texts: (x) => [u32(ARRAY), u32(STRING), u64(x.length), ...x.map(text)],
  i32s: (x) => [u32(ARRAY), u32(INT32), u64(x.length), Buffer.from(Int32Array.from(x).buffer)],
}

const tokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
for (let i = tokens.length; i < vocabulary; i++) tokens.push(`tok${i}`)
const metadata = {
  'general.architecture': values.text('llama'),
  'general.alignment': values.u32(ALIGNMENT),
  'general.file_type': values.u32(2),
  'llama.block_count': values.u32(layers),
  'llama.context_length': values.u32(8192),
  'llama.embedding_length': values.u32(hidden),
  'llama.feed_forward_length': values.u32(inner),
  'llama.attention.head_count': values.u32(heads),
  'llama.attention.head_count_kv': values.u32(kvHeads),
  'llama.attention.layer_norm_rms_epsilon': values.f32(1e-5),
  'llama.rope.freq_base': values.f32(100000),
  'llama.rope.dimension_count': values.u32(headSize),
  'llama.vocab_size': values.u32(vocabulary),
  'tokenizer.ggml.model': values.text('gpt2'),
  'tokenizer.ggml.pre': values.text('smollm'),
  'tokenizer.ggml.tokens': values.texts(tokens),
  'tokenizer.ggml.token_type': values.i32s(tokens.map((_, i) => (i < 3 ? 3 : 1))),
  'tokenizer.ggml.merges': values.texts(['t o', 'to k']),
  'tokenizer.ggml.bos_token_id': values.u32(1),
  'tokenizer.ggml.eos_token_id': values.u32(2),
}

// Name, rows, columns; norms have no rows.
const tensors = [
  ['token_embd.weight', vocabulary, hidden],
  ['output_norm.weight', 0, hidden],
]
for (let i = 0; i < layers; i++) {
  const kv = kvHeads * headSize
  tensors.push(
    [`blk.${i}.attn_norm.weight`, 0, hidden],
    [`blk.${i}.ffn_norm.weight`, 0, hidden],
    [`blk.${i}.attn_q.weight`, heads * headSize, hidden],
    [`blk.${i}.attn_k.weight`, kv, hidden],
    [`blk.${i}.attn_v.weight`, kv, hidden],
    [`blk.${i}.attn_output.weight`, hidden, heads * headSize],
    [`blk.${i}.ffn_gate.weight`, inner, hidden],
    [`blk.${i}.ffn_up.weight`, inner, hidden],
    [`blk.${i}.ffn_down.weight`, hidden, inner],
  )
}

let state = 1
const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0)
/** Blocks of 32: a float16 scale, here 0.0025, and 16 bytes of codes. */
function randomBlocks(count) {
  const data = Buffer.alloc(count * 18)
  for (let i = 0; i < data.length; i += 18) {
    data.writeUInt16LE(0x191f, i)
    for (let b = 2; b < 18; b++) data[i + b] = random() >>> 24
  }
  return data
}
const ones = (count) => Buffer.from(new Float32Array(count).fill(1).buffer)
const padded = (data) => Buffer.concat([data, Buffer.alloc((ALIGNMENT - (data.length % ALIGNMENT)) % ALIGNMENT)])

const header = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(Object.keys(metadata).length)]
for (const [key, value] of Object.entries(metadata)) header.push(text(key), ...value)
const data = tensors.map(([, rows, columns]) => padded(rows ? randomBlocks((rows * columns) / 32) : ones(columns)))
let offset = 0
for (const [i, [name, rows, columns]] of tensors.entries()) {
  const dimensions = rows ? [columns, rows] : [columns]
  header.push(text(name), u32(dimensions.length), ...dimensions.map(u64), u32(rows ? Q4_0 : F32), u64(offset))
  offset += data[i].length
}
const file = openSync(process.argv[2], 'w')
for (const part of [padded(Buffer.concat(header)), ...data]) writeSync(file, part)
closeSync(file)
