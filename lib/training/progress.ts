import cliProgress from 'cli-progress'
import type { EvaluateEvent, LogEvent, StepEvent } from './types.js'

/** What a training shows while it runs. */
export interface Progress {
  step(event: StepEvent): void
  log(event: LogEvent): void
  evaluate(event: EvaluateEvent): void
  /** Prints a line without tearing the bar. */
  print(line: string): void
  stop(): void
}

/** Nothing at all. */
const silent: Progress = { step() {}, log() {}, evaluate() {}, print() {}, stop() {} }

/** A bar where `stream` is a terminal, a line per log elsewhere. */
export function openProgress(maxSteps: number, startStep: number, disabled: boolean, stream = process.stderr): Progress {
  if (disabled) return silent
  return stream.isTTY ? new Bar(maxSteps, startStep, stream) : new Lines(stream)
}

class Bar implements Progress {
  readonly #bars: cliProgress.MultiBar
  readonly #bar: cliProgress.SingleBar

  constructor(maxSteps: number, startStep: number, stream: NodeJS.WriteStream) {
    const format = '{bar} {value}/{total} steps | {duration_formatted} < {eta_formatted} | epoch {epoch} | loss {loss}{extra}'
    this.#bars = new cliProgress.MultiBar(
      { format, stream, hideCursor: true, etaBuffer: 50, linewrap: false, gracefulExit: false, barsize: 24 },
      cliProgress.Presets.shades_classic,
    )
    this.#bar = this.#bars.create(maxSteps, startStep, { epoch: '0.00', loss: '-', extra: '' })
  }

  step({ step, epoch }: StepEvent): void {
    this.#bar.update(step, { epoch: epoch.toFixed(2) })
  }

  log({ loss, tokensPerSecond }: LogEvent): void {
    this.#bar.update({ loss: loss.toFixed(4), extra: ` | ${Math.round(tokensPerSecond)} tokens/s` })
  }

  evaluate(event: EvaluateEvent): void {
    this.print(describeEvaluation(event))
  }

  print(line: string): void {
    this.#bars.log(`${line}\n`)
  }

  stop(): void {
    this.#bars.stop()
  }
}

class Lines implements Progress {
  constructor(readonly stream: NodeJS.WritableStream) {}

  step(): void {}

  log({ step, maxSteps, epoch, loss, learningRate, gradNorm, tokensPerSecond }: LogEvent): void {
    const figures = `loss ${loss.toFixed(4)}  grad norm ${gradNorm.toFixed(3)}  learning rate ${learningRate.toExponential(2)}`
    this.print(`step ${step}/${maxSteps}  epoch ${epoch.toFixed(2)}  ${figures}  ${Math.round(tokensPerSecond)} tokens/s`)
  }

  evaluate(event: EvaluateEvent): void {
    this.print(describeEvaluation(event))
  }

  print(line: string): void {
    this.stream.write(`${line}\n`)
  }

  stop(): void {}
}

function describeEvaluation({ step, metrics }: EvaluateEvent): string {
  const figures = Object.entries(metrics).map(([name, value]) => `${name} ${Number(value.toPrecision(5))}`)
  return `step ${step}  ${figures.join('  ')}`
}
