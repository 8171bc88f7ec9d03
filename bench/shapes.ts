/**
 * Shapes of models, as Hugging Face configs: the benchmarks fill them with random weights. Their files are bfloat16, so what is not
 * quantized (the embedding, which is the head as well) is kept in that type here too.
 */
const LLAMA = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  torch_dtype: 'bfloat16',
  hidden_act: 'silu',
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  vocab_size: 49152,
  tie_word_embeddings: true,
}

export const SHAPES = {
  /** For trying a benchmark out. */
  tiny: {
    ...LLAMA,
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    vocab_size: 256,
  },
  'smollm2-135m': {
    ...LLAMA,
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
  },
  'smollm2-360m': {
    ...LLAMA,
    hidden_size: 960,
    intermediate_size: 2560,
    num_hidden_layers: 32,
    num_attention_heads: 15,
    num_key_value_heads: 5,
  },
  'llama3-8b': {
    ...LLAMA,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    vocab_size: 128256,
    rope_theta: 500000,
    tie_word_embeddings: false,
  },
} as const

export type ShapeName = keyof typeof SHAPES

/** @throws Error if there is no shape of that name */
export function shapeOf(name: string): (typeof SHAPES)[ShapeName] {
  if (name in SHAPES) return SHAPES[name as ShapeName]
  throw new Error(`there is no shape "${name}"; known are ${Object.keys(SHAPES).join(', ')}`)
}

/** Token ids without a pattern, the same in every run. */
export function randomIds(count: number, vocabulary: number, seed = 0): number[] {
  return Array.from({ length: count }, (_, i) => (seed * 7919 + i * 104729 + 17) % vocabulary)
}
