import { add, gatherRows, linearCrossEntropy, reshape, ropeInPlace, swiglu, Tape } from '../autograd/index.js'
import {
  type EmbeddingLayer,
  headLogits,
  headOperands,
  type LayerContext,
  type LinearLayer,
  linear,
  ModelBuilder,
  type NormLayer,
  type ParameterSource,
  type RopeConfig,
  RopeTables,
  rmsNorm,
  runStages,
  tokenEmbedding,
} from '../nn/index.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Architecture, CreateOptions } from './architecture.js'
import type { Attend, CausalLM, ForwardInput, ModelShape } from './causal-lm.js'
import { ConfigReader } from './config.js'
import { parseRope } from './rope-config.js'

/** Llama 2 and 3, SmolLM2, Mistral and Qwen2 differ in these values alone. */
export interface LlamaConfig extends ModelShape {
  intermediateSize: number
  rmsNormEps: number
  rope: RopeConfig
  tieWordEmbeddings: boolean
  /** biases of q, k, v */
  qkvBias: boolean
  /** bias of o */
  outputBias: boolean
  mlpBias: boolean
  initializerRange: number
}

function parseConfig(json: Record<string, unknown>): LlamaConfig {
  const config = new ConfigReader(json)
  const { modelType } = config
  const activation = config.string('hidden_act', 'silu')
  if (activation !== 'silu' && activation !== 'swish') throw config.unsupported(`hidden_act "${activation}"`, 'silu')
  const hiddenSize = config.size('hidden_size')
  const numHeads = config.size('num_attention_heads')
  const numKeyValueHeads = config.size('num_key_value_heads', numHeads)
  if (numHeads % numKeyValueHeads !== 0) {
    throw config.unsupported(`num_attention_heads ${numHeads} over num_key_value_heads ${numKeyValueHeads}`, 'a multiple')
  }
  // Rope's frequencies are computed before any file is read.
  const headDim = config.size('head_dim', hiddenSize / numHeads, 1 << 16)
  if (headDim % 2 !== 0) throw config.unsupported(`head_dim ${headDim}`, 'even sizes')
  const attentionBias = config.boolean('attention_bias', false)
  const context = config.size('max_position_embeddings', 2048)
  return {
    modelType,
    vocabSize: config.size('vocab_size'),
    hiddenSize,
    numLayers: config.layers('num_hidden_layers'),
    numHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings: Math.min(context, slidingWindow(config) ?? context),
    intermediateSize: config.size('intermediate_size'),
    rmsNormEps: config.number('rms_norm_eps', 1e-6),
    rope: parseRope(config),
    tieWordEmbeddings: config.boolean('tie_word_embeddings', false),
    qkvBias: attentionBias || modelType === 'qwen2',
    outputBias: attentionBias && modelType === 'llama',
    mlpBias: config.boolean('mlp_bias', false),
    initializerRange: config.number('initializer_range', 0.02),
  }
}

/** Up to the window's length, sliding-window attention is full attention: so the window bounds the context that is accepted. */
function slidingWindow(config: ConfigReader): number | null {
  if (!config.has('sliding_window')) return null
  if (config.modelType === 'qwen2' && !config.boolean('use_sliding_window', false)) return null
  return config.modelType === 'llama' ? null : config.size('sliding_window')
}

interface Layer {
  inputNorm: NormLayer
  q: LinearLayer
  k: LinearLayer
  v: LinearLayer
  o: LinearLayer
  postAttentionNorm: NormLayer
  gate: LinearLayer
  up: LinearLayer
  down: LinearLayer
}

interface Weights {
  embedTokens: EmbeddingLayer
  layers: Layer[]
  norm: NormLayer
  head: LinearLayer
}

function buildWeights(config: LlamaConfig, build: ModelBuilder): Weights {
  const { hiddenSize, intermediateSize, rmsNormEps, qkvBias, outputBias, mlpBias } = config
  const queries = config.numHeads * config.headDim
  const keys = config.numKeyValueHeads * config.headDim
  const embedTokens = build.embedding('model.embed_tokens', config.vocabSize, hiddenSize)
  const layers = Array.from({ length: config.numLayers }, (_, i): Layer => {
    const name = `model.layers.${i}`
    return {
      inputNorm: build.norm(`${name}.input_layernorm`, hiddenSize, rmsNormEps),
      q: build.linear(`${name}.self_attn.q_proj`, hiddenSize, queries, { bias: qkvBias }),
      k: build.linear(`${name}.self_attn.k_proj`, hiddenSize, keys, { bias: qkvBias }),
      v: build.linear(`${name}.self_attn.v_proj`, hiddenSize, keys, { bias: qkvBias }),
      o: build.linear(`${name}.self_attn.o_proj`, queries, hiddenSize, { bias: outputBias }),
      postAttentionNorm: build.norm(`${name}.post_attention_layernorm`, hiddenSize, rmsNormEps),
      gate: build.linear(`${name}.mlp.gate_proj`, hiddenSize, intermediateSize, { bias: mlpBias }),
      up: build.linear(`${name}.mlp.up_proj`, hiddenSize, intermediateSize, { bias: mlpBias }),
      down: build.linear(`${name}.mlp.down_proj`, intermediateSize, hiddenSize, { bias: mlpBias }),
    }
  })
  const norm = build.norm('model.norm', hiddenSize, rmsNormEps)
  const head = config.tieWordEmbeddings
    ? build.tiedLinear('lm_head', embedTokens)
    : build.linear('lm_head', hiddenSize, config.vocabSize)
  return { embedTokens, layers, norm, head }
}

/** What the layers of one call share. */
interface Call extends LayerContext {
  attend: Attend
  /** [T, headDim] */
  rope: Tensor
  /** the rows to which the last layer narrows down, and their part of the table */
  outputRows: Tensor | null
  outputRope: Tensor
}

/** Llama (Touvron et al. 2023) and its kin. */
function create(config: LlamaConfig, params: ParameterSource, { dtype }: CreateOptions): CausalLM {
  const build = new ModelBuilder(params, config.initializerRange)
  const weights = buildWeights(config, build)
  const tables = new RopeTables(config.rope, config.headDim)

  function attentionBlock(x: Tensor, index: number, rows: Tensor | null, call: Call): Tensor {
    const { q, k, v, o } = weights.layers[index]!
    const heads = (y: Tensor) => reshape(y, [y.shape[0]!, y.shape[1]! / config.headDim, config.headDim])
    const asking = rows ? gatherRows(x, rows) : x
    const queries = ropeInPlace(heads(linear(asking, q, call)), rows ? call.outputRope : call.rope)
    const keys = ropeInPlace(heads(linear(x, k, call)), call.rope)
    const values = heads(linear(x, v, call))
    const attended = call.attend(index, queries, keys, values, rows)
    return linear(reshape(attended, [asking.shape[0]!, config.numHeads * config.headDim]), o, call)
  }

  function mlp(x: Tensor, { gate, up, down }: Layer, call: Call): Tensor {
    return linear(swiglu(linear(x, gate, call), linear(x, up, call)), down, call)
  }

  function layer(x: Tensor, index: number, call: Call): Tensor {
    const weight = weights.layers[index]!
    const rows = index === config.numLayers - 1 ? call.outputRows : null
    const attended = attentionBlock(rmsNorm(x, weight.inputNorm, call), index, rows, call)
    const h = add(rows ? gatherRows(x, rows) : x, attended)
    return add(h, mlp(rmsNorm(h, weight.postAttentionNorm, call), weight, call))
  }

  function hidden({ inputIds, positions, attend, outputRows, adapter, ...options }: ForwardInput): Tensor {
    const rope = tables.at(positions)
    const outputRope = outputRows ? gatherRows(rope, outputRows) : rope
    const call: Call = { attend, rope, outputRows, outputRope, adapter, dropoutRng: options.dropoutRng ?? null }
    Tape.current?.hold(rope, outputRope, outputRows, call.dropoutRng)
    const x = tokenEmbedding(inputIds, weights.embedTokens, call, dtype)
    const stages = weights.layers.map((_, index) => (x: Tensor) => layer(x, index, call))
    return runStages(x, [...stages, (x) => rmsNorm(x, weights.norm, call)], options.gradientCheckpointing ?? false)
  }

  const headOf = (adapter: ForwardInput['adapter']) => headOperands(weights.head, adapter)
  return {
    shape: config,
    parameters: build.parameters,
    linearLayers: build.linearLayers,
    embeddingName: weights.embedTokens.name,
    headName: weights.head.name,
    defaultTargetModules: ['q_proj', 'v_proj'],
    hidden,
    logits: (x, adapter) => headLogits(x, headOf(adapter)),
    losses: (x, rows, ids, adapter) => linearCrossEntropy(x, headOf(adapter), rows, ids),
  }
}

export const llama: Architecture<LlamaConfig> = {
  modelTypes: ['llama', 'mistral', 'qwen2'],
  parseConfig,
  create,
  fileNames: (parameter) => [parameter],
}
