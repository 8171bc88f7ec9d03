/**
 * Where something is that transformers, PEFT or TRL call otherwise or have elsewhere: option type → name there, in camelCase → what to do
 * here. Names that differ in spelling alone need no entry.
 */
const elsewhere: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  ModelOptions: {
    torchDtype: 'it is called dtype',
    deviceMap: 'it is called device',
    loadIn4bit: "say { quantization: 'nf4' }",
    loadIn8bit: "say { quantization: 'int8' }",
    quantizationConfig: 'it is called quantization',
    attnImplementation: 'there is one attention, chosen by the device',
    trustRemoteCode: 'no code of a model is ever run',
  },
  LoraConfig: {
    taskType: 'leave it out: every model is a causal language model',
    inferenceMode: 'loadAdapter(folder, { trainable }) says whether an adapter is trained',
    fanInFanOut: 'leave it out: the architecture knows',
    useDora: 'DoRA is not supported',
  },
  LoadAdapterOptions: {
    isTrainable: 'it is called trainable',
    adapterName: 'it is called name',
  },
  TrainerOptions: {
    tokenizer: 'the collator has it: { collator: new ChatCollator(tokenizer) }',
    processingClass: 'the collator has it: { collator: new ChatCollator(tokenizer) }',
    dataCollator: 'it is called collator',
    peftConfig: 'call model.addAdapter(config) first',
    formattingFunc: 'map the data set: dataset.map(row => ({ text: … }))',
  },
  TrainingArguments: {
    bf16: "the type of compute is chosen at loading: Model.fromPretrained(source, { dtype: 'bfloat16' })",
    fp16: "the type of compute is chosen at loading: Model.fromPretrained(source, { dtype: 'bfloat16' })",
    optim: 'leave it out: the optimizer is AdamW',
    warmupRatio: 'warmupSteps below 1 is a share of all steps',
    maxLength: 'it belongs to new ChatCollator(tokenizer, { maxLength })',
    maxSeqLength: 'it belongs to new ChatCollator(tokenizer, { maxLength })',
    assistantOnlyLoss: 'it belongs to new ChatCollator(tokenizer, { assistantOnlyLoss })',
    completionOnlyLoss: 'it belongs to new ChatCollator(tokenizer, { completionOnlyLoss })',
    packing: 'leave it out: batches are always packed, and no sample sees another',
    groupByLength: "say { trainSamplingStrategy: 'group_by_length' }",
    resumeFromCheckpoint: 'it belongs to train({ resumeFromCheckpoint })',
    reportTo: "listen to trainer.on('log', …)",
    disableTqdm: 'it is called disableProgress',
    removeUnusedColumns: 'leave it out: nothing is removed',
  },
  GenerationConfig: {
    maxLength: 'say how many new tokens: maxNewTokens',
    padTokenId: 'leave it out: nothing is padded',
    streamer: 'for await (const { text } of model.stream(prompt))',
    stoppingCriteria: 'stopStrings, or leave the loop over model.stream(prompt)',
    badWordsIds: 'suppressTokens takes single tokens',
  },
  ChatCollatorOptions: {
    maxSeqLength: 'it is called maxLength',
    padToMultipleOf: 'leave it out: nothing is padded',
  },
}

/** What to do instead of the option `name` (camelCase) of another library; undefined where nothing is known of it. */
export function otherName(optionType: string, name: string): string | undefined {
  const names = elsewhere[optionType]
  return names && Object.hasOwn(names, name) ? names[name] : undefined
}
