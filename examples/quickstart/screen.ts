import type { Question } from '../squad/data.js'

/** How a training shows itself: a loss bar with the model's current answer under it; plain lines where there is no terminal. */
export class Screen {
  private drawn = false
  private losses: number[] = []
  private answer = ''

  /** Redraws the bar, or prints a line at every tenth of the way. */
  progress(step: number, total: number, loss: number): void {
    this.losses.push(loss)
    if (!process.stdout.isTTY) {
      if (step === total || step % Math.ceil(total / 10) < 1) console.log(`step ${step}/${total}  loss ${loss.toFixed(3)}`)
      return
    }
    const width = 30
    const filled = Math.round((width * step) / total)
    const bar = `${'█'.repeat(filled)}${'░'.repeat(width - filled)}`
    this.draw(`  ${bar} ${step}/${total}  loss ${loss.toFixed(3)}  ${sparkline(this.losses, 24)}`)
  }

  /** Shows what the model answers at this step. */
  answered(step: number, text: string): void {
    this.answer = `  step ${String(step).padStart(3)}: ${oneLine(text)}`
    if (!process.stdout.isTTY) console.log(this.answer)
  }

  /** Leaves the last state on the screen. */
  end(): void {
    if (this.drawn) process.stdout.write('\n\n')
    this.drawn = false
  }

  private draw(bar: string): void {
    const width = (process.stdout.columns ?? 80) - 1
    const up = this.drawn ? '\x1b[1A' : ''
    process.stdout.write(`${up}\r\x1b[2K${bar.slice(0, width)}\n\x1b[2K${this.answer.slice(0, width)}`)
    this.drawn = true
  }
}

/** A picture of the values, at most `width` characters wide; each character is the mean of its share. */
function sparkline(values: readonly number[], width: number): string {
  const count = Math.min(width, values.length)
  const means = Array.from({ length: count }, (_, i) => {
    const part = values.slice(Math.floor((i * values.length) / count), Math.floor(((i + 1) * values.length) / count))
    return part.reduce((sum, value) => sum + value, 0) / part.length
  })
  const highest = Math.max(...means)
  return means.map((value) => '▁▂▃▄▅▆▇█'[Math.min(7, Math.floor((8 * value) / highest))]).join('')
}

export function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim()
}

/** A paragraph under a label, wrapped to the terminal. */
export function paragraph(label: string, text: string): string {
  const width = Math.min(100, process.stdout.columns ?? 100) - 12
  const lines: string[] = ['']
  for (const word of oneLine(text).split(' ')) {
    const last = lines.length - 1
    if (lines[last]!.length + word.length + 1 > width && lines[last] !== '') lines.push(word)
    else lines[last] = lines[last] === '' ? word : `${lines[last]} ${word}`
  }
  return lines.map((line, i) => (i === 0 ? label : '').padEnd(12) + line).join('\n')
}

export function showQuestion({ context, question, answers }: Question): void {
  console.log(paragraph('context', context))
  console.log(paragraph('question', question))
  console.log(paragraph('answer', answers[0]!))
}
