import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'
import * as evaluation from '../../lib/evaluation/index.js'
import * as quantune from '../../lib/index.js'
import {
  AdamW,
  Batch,
  ChatCollator,
  type Collator,
  Dataset,
  type ErrorCode,
  env,
  type ForwardOptions,
  type Generation,
  type GenerationConfig,
  Generator,
  type IndexedDataset,
  type IntervalStrategy,
  type LoraConfig,
  Model,
  type ModelOptions,
  type QuantizationConfig,
  QuantuneError,
  type SavePretrainedOptions,
  type SchedulerKwargs,
  setSeed,
  Trainer,
  type TrainerEvents,
  type TrainingArguments,
  type TrainingDataset,
  type TrainingExample,
  type TypedEmitter,
} from '../../lib/index.js'

/** The documented names with their documented types: this file has to compile. What they do is tested beside their sources. */

t.test('values', async (t) => {
  const names = ['Model', 'Batch', 'Dataset', 'ChatCollator', 'Trainer', 'Generator', 'AdamW', 'Tokenizer', 'Parameter']
  for (const name of [...names, 'setSeed', 'QuantuneError', 'extractAnswer', 'exactMatch', 'squadMetrics', 'summarize'])
    t.type((quantune as Record<string, unknown>)[name], 'function', name)
  for (const name of Object.keys(evaluation)) t.ok(name in quantune, name)
  t.match(env, { logLevel: String, numThreads: Number })
  t.type(env.logger, 'function')
})

export async function models(folder: string, signal: AbortSignal): Promise<Generation> {
  const quantization: QuantizationConfig = { type: 'nf4', blockSize: 64, doubleQuant: true, skipModules: ['lm_head'] }
  const hub = { revision: 'main', token: 'hf_', cacheDir: folder, localFilesOnly: true }
  const options: ModelOptions = {
    device: 'cuda:1',
    dtype: 'auto',
    quantization,
    ...hub,
    signal,
    onProgress: ({ stage }) => stage,
  }
  const model = await Model.fromPretrained(folder, options)
  await using other = await Model.fromConfig(model.config, { device: 'auto', quantization: 'fp4' })
  const config: LoraConfig = {
    type: 'lora',
    r: 8,
    loraAlpha: 16,
    loraDropout: 0,
    targetModules: /q_proj|v_proj/,
    excludeModules: ['lm_head'],
    useRslora: true,
    bias: 'none',
    modulesToSave: ['lm_head'],
    rankPattern: { q_proj: 4 },
    alphaPattern: { q_proj: 4 },
    layersToTransform: [0],
    initLoraWeights: true,
    seed: 1,
  }
  const adapter: LoraConfig = { ...config, targetModules: 'all-linear' }
  const estimate = { quantization: 'nf4', adapter, batchTokens: 512, gradientCheckpointing: true } as const
  const { total } = await Model.estimateMemory(folder, estimate)
  const { current, peak } = other.memoryUsage()
  other.addAdapter(config, 'qa')
  await other.loadAdapter(folder, { name: 'loaded', trainable: true })
  await other.saveAdapter(folder, 'qa')
  other.setAdapter('qa')
  const view: Model = other.withAdapter(null)
  await other.mergeAdapter('qa')
  await other.unmergeAdapter('qa')
  const ids: number[] = other.addTokens(['<blah>'], { trainable: true, predictable: false, initFrom: 'mean' })
  const saving: SavePretrainedOptions = { mergeAdapter: true, base: 'original', dtype: 'bfloat16', maxShardSize: '5GB' }
  await other.savePretrained(folder, saving)
  for (const [name, parameter] of view.parameters()) {
    const { shape, dtype, requiresGrad } = parameter
    env.logger('info', `${name} ${shape} ${dtype} ${requiresGrad} ${await parameter.data()} ${await parameter.grad()}`)
  }
  const forward: ForwardOptions = { adapter: 'qa', outputRows: new Int32Array(ids) }
  const batch = Batch.fromPadded({ inputIds: [[1]], attentionMask: [[1]], labels: [[-100]] })
  const { loss, logits } = view.forward(batch, forward)
  void [loss, logits, total, current.weights, peak.total, view.tokenizer, view.device]
  await view.score('a', ['b'])
  for await (const { text, tokenId } of view.stream('a')) void [text, tokenId]
  return view.generate('a')
}

export async function data(path: string, model: Model): Promise<string> {
  Batch.pack([{ inputIds: [1, 2], labels: [-100, 2] }], { sharePrefixes: true })
  const dataset = await Dataset.fromJsonl<TrainingExample>(path)
  const { train } = (await dataset.map((x) => x).filter(() => true)).trainTestSplit({ testSize: 0.1, seed: 1 })
  const options = { maxLength: 512, assistantOnlyLoss: true, ignoreTokens: ['<blah>'], sharePrefixes: true }
  const chats = new ChatCollator(model.tokenizer, options)
  const collator: Collator = chats
  const messages = [{ role: 'user', content: 'Hi' }]
  const examples: TrainingExample[] = [
    { messages },
    { prompt: 'a', completion: 'b' },
    { text: 'c' },
    { inputIds: [1], labels: [1] },
  ]
  await collator.collate([await train.at(0), ...examples])
  const ids: number[] = model.tokenizer.encode('text', { addSpecialTokens: false })
  const rendered: string = model.tokenizer.applyChatTemplate(messages, { tokenize: false, addGenerationPrompt: true })
  const { inputIds, assistantMask } = model.tokenizer.applyChatTemplate(messages, {
    tokenize: true,
    continueFinalMessage: false,
    tools: [],
    chatTemplate: '',
    date_string: '26 Jul 2024',
  })
  void [inputIds, assistantMask, rendered]
  return chats.explain(examples[0]!) + model.tokenizer.decode(ids, { skipSpecialTokens: true })
}

export async function training(model: Model, signal: AbortSignal): Promise<string | null> {
  const indexed: IndexedDataset<TrainingExample> = { length: 1, at: async () => ({ text: 'a' }) }
  const sources: TrainingDataset<TrainingExample>[] = [
    [{ text: 'a' }],
    indexed,
    async function* () {
      yield { text: 'a' }
    },
  ]
  const lrSchedulerKwargs: SchedulerKwargs = { numCycles: 1 }
  const evalStrategy: IntervalStrategy = 'steps'
  const args: TrainingArguments = {
    outputDir: 'out',
    maxSteps: 1,
    numTrainEpochs: 1,
    perDeviceTrainBatchSize: 1,
    perDeviceEvalBatchSize: 1,
    gradientAccumulationSteps: 1,
    maxTokensPerBatch: 512,
    learningRate: 1e-4,
    lrSchedulerType: (step, total) => step / total,
    lrSchedulerKwargs,
    warmupSteps: 0.1,
    weightDecay: 0,
    adamBeta1: 0.9,
    adamBeta2: 0.999,
    adamEpsilon: 1e-8,
    maxGradNorm: 1,
    gradientCheckpointing: 'auto',
    loggingSteps: 1,
    evalStrategy,
    evalSteps: 1,
    evalOnStart: true,
    saveStrategy: 'steps',
    saveSteps: 1,
    saveTotalLimit: 1,
    loadBestModelAtEnd: true,
    metricForBestModel: 'eval_loss',
    greaterIsBetter: false,
    earlyStoppingPatience: 3,
    trainSamplingStrategy: 'group_by_prefix',
    seed: 1,
    disableProgress: true,
  }
  const computeMetrics = async ({ step, signal }: { model: Model; step: number; signal: AbortSignal | undefined }) => ({
    step: signal ? step : 0,
  })
  const callbacks = { onStepEnd: async () => {}, onEvaluate: () => {}, onSave: () => {} }
  const shared = { model, adapter: 'qa', evalDataset: indexed, computeMetrics, callbacks, args }
  const trainer = new Trainer({ ...shared, trainDataset: sources[0] })
  const emitter: TypedEmitter<TrainerEvents> = trainer
  emitter.on('log', ({ step, loss, learningRate, gradNorm, tokensPerSecond, samplesPerSecond }) =>
    env.logger('info', String([step, loss, learningRate, gradNorm, tokensPerSecond, samplesPerSecond])),
  )
  emitter.on('step', ({ step }) => step > 5 && trainer.stop())
  emitter.on('evaluate', ({ metrics }) => metrics.eval_loss)
  emitter.on('save', ({ path }) => path)
  emitter.on('end', ({ stopReason }) => stopReason)
  const output = await trainer.train({ signal, resumeFromCheckpoint: 'auto' })
  const { stopReason, globalStep, trainLoss, metrics, lastCheckpoint } = output
  void [stopReason, globalStep, trainLoss, metrics, await trainer.evaluate(), trainer.state]
  await trainer.dispose()

  const options = { learningRate: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0, maxGradNorm: 1 } as const
  const optimizer = new AdamW(model.trainableParameters(), options)
  const { loss } = model.forward(Batch.pack([{ inputIds: [1, 2], labels: [1, 2] }]))
  loss!.backward()
  await optimizer.step()
  optimizer.zeroGrad()
  const value: number = await loss!.item()
  loss!.dispose()
  return value > 0 ? lastCheckpoint : null
}

export async function generation(model: Model, signal: AbortSignal): Promise<Generation[]> {
  setSeed(1)
  await using generator = new Generator(model)
  const options: GenerationConfig = {
    adapter: null,
    maxNewTokens: 1,
    minNewTokens: 1,
    numBeams: 2,
    numReturnSequences: 2,
    lengthPenalty: 1,
    earlyStopping: 'never',
    doSample: false,
    temperature: 1,
    topK: 1,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    noRepeatNgramSize: 2,
    stopStrings: ['}\n'],
    forcedPrefix: 'a',
    continueFinalMessage: false,
    eosTokenId: [2],
    seed: 1,
    signal,
  }
  const { text, tokenIds, score, finishReason, alternatives } = await generator.generate({ inputIds: [1] }, options)
  const scores = await generator.score(['a'], [['b', 'c']])
  const reason: 'stop' | 'length' = finishReason
  const code: ErrorCode = new QuantuneError('ERR_BUSY', '').code
  void [text, tokenIds, score, alternatives, scores[0]![0]!.logProb, reason, code]
  return generator.generate(['a', { messages: [{ role: 'user', content: 'b' }], tools: [] }], options)
}

t.test('options say in the editor what they mean', async (t) => {
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [] }, ts.sys, root)
  const index = join(root, 'lib/index.ts')
  const program = ts.createProgram([index], { ...options, noEmit: true, incremental: false })
  const checker = program.getTypeChecker()
  const exported = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(index)!)!)
  for (const name of [
    'AdamWOptions',
    'AddTokensOptions',
    'ChatCollatorOptions',
    'ForwardOptions',
    'GenerationConfig',
    'LoadAdapterOptions',
    'LoraConfig',
    'TrainingArguments',
    'TrainOptions',
  ]) {
    const symbol = exported.find((symbol) => symbol.name === name)
    t.ok(symbol, `${name} is exported`)
    const properties = checker.getDeclaredTypeOfSymbol(checker.getAliasedSymbol(symbol!)).getProperties()
    const bare = properties.filter((property) => property.getDocumentationComment(checker).length === 0)
    t.same(
      bare.map((property) => property.name).filter((property) => !['type', 'signal'].includes(property)),
      [],
      name,
    )
  }
})
