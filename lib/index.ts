/**
 * quantune: QLoRA fine-tuning and generation of Llama-style language models inside a Node.js program.
 *
 * @packageDocumentation
 */
export type { TrainerEvents, TypedEmitter } from '../types/events.js'
export { Parameter } from './autograd/parameter.js'
export { Batch, type PackOptions, type PaddedBatch, type Sequence } from './data/batch.js'
export type { BatchData } from './data/batch-data.js'
export type { ApplyChatTemplateOptions, ChatMessage, RenderedChat } from './data/chat.js'
export {
  ChatCollator,
  type ChatCollatorOptions,
  type CollateContext,
  type Collator,
  type EncodedExample,
  type TrainingExample,
  type TruncationReport,
} from './data/chat-collator.js'
export { Dataset, type DatasetLike, type IndexedData } from './data/dataset.js'
export { type DecodeOptions, type EncodeOptions, Tokenizer } from './data/tokenizer.js'
export { env, type Logger, type LogLevel, setSeed } from './env.js'
export { type ErrorCode, QuantuneError } from './errors.js'
export * from './evaluation/index.js'
export * from './generation/index.js'
export type { LoadAdapterOptions } from './model/adapters.js'
export type { ForwardOptions, ForwardResult, Loss } from './model/forward.js'
export type { EstimateOptions, MemoryEstimate } from './model/memory.js'
export { Model } from './model/model.js'
export type { FromConfigOptions, HubOptions, ModelOptions, Progress } from './model/options.js'
export type { SavePretrainedOptions } from './model/save.js'
export type { AddTokensOptions } from './model/tokens.js'
export type { LoraConfig } from './peft/lora.js'
export type { ModuleSelector } from './peft/target-modules.js'
export type {
  BitsAndBytesConfig,
  FourBitConfig,
  Int8Config,
  Quantization,
  QuantizationConfig,
} from './quantization/config.js'
export type { Device, MemoryUsage } from './tensor/device.js'
export type { Tensor } from './tensor/tensor.js'
export type { IntervalStrategy, TrainingArguments } from './training/arguments.js'
export type { Grouping, IndexedDataset, TrainingDataset } from './training/feed.js'
export { AdamW, type AdamWOptions, type ParameterGroup } from './training/optimizer.js'
export type { SamplingStrategy } from './training/samplers.js'
export type { Schedule, SchedulerKwargs, SchedulerType } from './training/schedules.js'
export {
  type MetricsContext,
  Trainer,
  type TrainerCallbacks,
  type TrainerOptions,
  type TrainOptions,
} from './training/trainer.js'
export type {
  Checkpoint,
  EvaluateEvent,
  LogEntry,
  LogEvent,
  Metrics,
  StepEvent,
  StopReason,
  TrainerState,
  TrainOutput,
} from './training/types.js'
