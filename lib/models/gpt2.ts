import {
  type ActivationKind,
  activation,
  add,
  embedding,
  gatherRows,
  linearCrossEntropy,
  reshape,
  Tape,
} from '../autograd/index.js'
import {
  type EmbeddingLayer,
  FusedProjection,
  headLogits,
  headOperands,
  inContext,
  type LayerContext,
  type LinearLayer,
  layerNorm,
  linear,
  ModelBuilder,
  type NormLayer,
  type ParameterSource,
  runStages,
  tokenEmbedding,
} from '../nn/index.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Architecture, CreateOptions } from './architecture.js'
import type { Attend, CausalLM, ForwardInput, ModelShape } from './causal-lm.js'
import { ConfigReader } from './config.js'

export interface Gpt2Config extends ModelShape {
  innerSize: number
  layerNormEps: number
  activation: ActivationKind
  tieWordEmbeddings: boolean
  initializerRange: number
}

const ACTIVATIONS: Record<string, ActivationKind> = {
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu: 'gelu',
  silu: 'silu',
  swish: 'silu',
  relu: 'relu',
}

function parseConfig(json: Record<string, unknown>): Gpt2Config {
  const config = new ConfigReader(json)
  const name = config.string('activation_function', 'gelu_new')
  const activation = ACTIVATIONS[name]
  if (!activation) throw config.unsupported(`activation_function "${name}"`, Object.keys(ACTIVATIONS).join(', '))
  if (!config.boolean('scale_attn_weights', true)) throw config.unsupported('scale_attn_weights false', 'true')
  for (const flag of ['scale_attn_by_inverse_layer_idx', 'add_cross_attention']) {
    if (config.boolean(flag, false)) throw config.unsupported(`${flag} true`, 'false')
  }
  const hiddenSize = config.size('n_embd', 768)
  const numHeads = config.size('n_head', 12)
  if (hiddenSize % numHeads !== 0) throw config.unsupported(`n_embd ${hiddenSize} over n_head ${numHeads}`, 'a multiple')
  return {
    modelType: config.modelType,
    vocabSize: config.size('vocab_size', 50257),
    hiddenSize,
    numLayers: config.layers('n_layer', 12),
    numHeads,
    numKeyValueHeads: numHeads,
    headDim: hiddenSize / numHeads,
    maxPositionEmbeddings: config.size('n_positions', 1024),
    innerSize: config.size('n_inner', 4 * hiddenSize),
    layerNormEps: config.number('layer_norm_epsilon', 1e-5),
    activation,
    tieWordEmbeddings: config.boolean('tie_word_embeddings', true),
    initializerRange: config.number('initializer_range', 0.02),
  }
}

interface Layer {
  attentionNorm: NormLayer
  /** queries, keys and values in one product */
  attention: LinearLayer
  attentionOutput: LinearLayer
  mlpNorm: NormLayer
  mlpInput: LinearLayer
  mlpOutput: LinearLayer
}

interface Weights {
  tokens: EmbeddingLayer
  positions: EmbeddingLayer
  layers: Layer[]
  norm: NormLayer
  head: LinearLayer
}

function buildWeights(config: Gpt2Config, build: ModelBuilder): Weights {
  const { hiddenSize, innerSize, layerNormEps } = config
  const conv1d = { bias: true, transposed: true }
  // The GPT-2 paper scales what is added to the residual stream by 1/√N, N being the number of residual layers.
  const residual = { ...conv1d, std: config.initializerRange / Math.sqrt(2 * config.numLayers) }
  const tokens = build.embedding('transformer.wte', config.vocabSize, hiddenSize)
  const positions = build.embedding('transformer.wpe', config.maxPositionEmbeddings, hiddenSize)
  const layers = Array.from({ length: config.numLayers }, (_, i): Layer => {
    const name = `transformer.h.${i}`
    return {
      attentionNorm: build.norm(`${name}.ln_1`, hiddenSize, layerNormEps, { bias: true }),
      attention: build.linear(`${name}.attn.c_attn`, hiddenSize, 3 * hiddenSize, conv1d),
      attentionOutput: build.linear(`${name}.attn.c_proj`, hiddenSize, hiddenSize, residual),
      mlpNorm: build.norm(`${name}.ln_2`, hiddenSize, layerNormEps, { bias: true }),
      mlpInput: build.linear(`${name}.mlp.c_fc`, hiddenSize, innerSize, conv1d),
      mlpOutput: build.linear(`${name}.mlp.c_proj`, innerSize, hiddenSize, residual),
    }
  })
  const norm = build.norm('transformer.ln_f', hiddenSize, layerNormEps, { bias: true })
  const head = config.tieWordEmbeddings
    ? build.tiedLinear('lm_head', tokens)
    : build.linear('lm_head', hiddenSize, config.vocabSize)
  return { tokens, positions, layers, norm, head }
}

interface Call extends LayerContext {
  attend: Attend
  /** the rows to which the last layer narrows down */
  outputRows: Tensor | null
}

/** GPT-2 (Radford et al. 2019). The dropout of its original training (`attn_pdrop` and kin) is not applied. */
function create(config: Gpt2Config, params: ParameterSource, { dtype }: CreateOptions): CausalLM {
  const build = new ModelBuilder(params, config.initializerRange)
  const weights = buildWeights(config, build)
  const projection = new FusedProjection(3)

  function attentionBlock(x: Tensor, index: number, rows: Tensor | null, call: Call): Tensor {
    const { attention, attentionOutput } = weights.layers[index]!
    const heads = (y: Tensor) => reshape(y, [y.shape[0]!, config.numHeads, config.headDim])
    const [q, k, v] = projection.split(linear(x, attention, call)) as [Tensor, Tensor, Tensor]
    const queries = rows ? gatherRows(q, rows) : q
    const attended = call.attend(index, heads(queries), heads(k), heads(v), rows)
    return linear(reshape(attended, [queries.shape[0]!, config.hiddenSize]), attentionOutput, call)
  }

  function mlp(x: Tensor, { mlpInput, mlpOutput }: Layer, call: Call): Tensor {
    return linear(activation(linear(x, mlpInput, call), config.activation), mlpOutput, call)
  }

  function layer(x: Tensor, index: number, call: Call): Tensor {
    const weight = weights.layers[index]!
    const rows = index === config.numLayers - 1 ? call.outputRows : null
    const attended = attentionBlock(layerNorm(x, weight.attentionNorm, call), index, rows, call)
    const h = add(rows ? gatherRows(x, rows) : x, attended)
    return add(h, mlp(layerNorm(h, weight.mlpNorm, call), weight, call))
  }

  function hidden({ inputIds, positions, attend, outputRows, adapter, ...options }: ForwardInput): Tensor {
    const call: Call = { attend, outputRows, adapter, dropoutRng: options.dropoutRng ?? null }
    Tape.current?.hold(outputRows, call.dropoutRng)
    const places = embedding(positions, inContext('transformer.wpe.weight', weights.positions.weight, call), null, dtype)
    const x = add(tokenEmbedding(inputIds, weights.tokens, call, dtype), places)
    const stages = weights.layers.map((_, index) => (x: Tensor) => layer(x, index, call))
    return runStages(x, [...stages, (x) => layerNorm(x, weights.norm, call)], options.gradientCheckpointing ?? false)
  }

  const headOf = (adapter: ForwardInput['adapter']) => headOperands(weights.head, adapter)
  return {
    shape: config,
    parameters: build.parameters,
    linearLayers: build.linearLayers,
    embeddingName: weights.tokens.name,
    headName: weights.head.name,
    defaultTargetModules: ['c_attn'],
    hidden,
    logits: (x, adapter) => headLogits(x, headOf(adapter)),
    losses: (x, rows, ids, adapter) => linearCrossEntropy(x, headOf(adapter), rows, ids),
  }
}

export const gpt2: Architecture<Gpt2Config> = {
  modelTypes: ['gpt2'],
  parseConfig,
  create,
  fileNames: (parameter) => [parameter, parameter.replace(/^transformer\./, '')],
}
