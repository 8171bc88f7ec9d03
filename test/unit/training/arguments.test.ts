import t from 'tap'
import { resolveArguments, type TrainingArguments } from '../../../lib/training/arguments.js'

t.test("defaults are transformers'", async (t) => {
  t.match(resolveArguments(undefined, false), {
    perDeviceTrainBatchSize: 8,
    learningRate: 5e-5,
    numTrainEpochs: 3,
    maxGradNorm: 1,
    weightDecay: 0,
    adamBeta2: 0.999,
    loggingSteps: 500,
    saveStrategy: 'steps',
    saveSteps: 500,
    evalStrategy: 'no',
    lrSchedulerType: 'linear',
    seed: 42,
    metricForBestModel: 'eval_loss',
    greaterIsBetter: false,
  })
})

t.test('what depends on others follows them', async (t) => {
  const best = resolveArguments({ evalStrategy: 'steps', loggingSteps: 10, loadBestModelAtEnd: true }, true)
  t.match(best, { evalSteps: 10, saveStrategy: 'steps', saveSteps: 10 })
  const metric = resolveArguments({ metricForBestModel: 'exact_match' }, true)
  t.match(metric, { metricForBestModel: 'eval_exact_match', greaterIsBetter: true })
})

t.test('contradictions are refused', async (t) => {
  const cases: [TrainingArguments, boolean, RegExp][] = [
    [{ evalStrategy: 'steps' }, false, /evalStrategy: expected an evalDataset or computeMetrics/],
    [{ evalOnStart: true }, false, /evalOnStart/],
    [{ earlyStoppingPatience: 2 }, true, /earlyStoppingPatience: expected an evalStrategy/],
    [{ saveStrategy: 'best' }, true, /'best' expects an evalStrategy/],
    [{ loadBestModelAtEnd: true }, true, /loadBestModelAtEnd: expected an evalStrategy/],
    [{ loadBestModelAtEnd: true, evalStrategy: 'steps', saveStrategy: 'epoch' }, true, /saveStrategy to be/],
    [{ loadBestModelAtEnd: true, evalStrategy: 'steps', evalSteps: 4, saveSteps: 6 }, true, /multiple of evalSteps/],
    [{ learning_rate: 1 } as TrainingArguments, true, /did you mean "learningRate"/],
    [{ perDeviceTrainBatchSize: 0 }, true, /perDeviceTrainBatchSize: expected a number >= 1, received 0/],
    [{ lrSchedulerType: 3 as never }, true, /lrSchedulerType: expected the name of a schedule.*received 3/],
  ]
  for (const [args, hasEval, message] of cases) {
    t.throws(() => resolveArguments(args, hasEval), { code: 'ERR_INVALID_ARGUMENT', message })
  }
})
