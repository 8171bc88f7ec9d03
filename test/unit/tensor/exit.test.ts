import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { Device, Tensor } from '../../../lib/tensor/index.js'
import { testDevices } from '../../support/devices.js'

const program = (name: string) => new URL(`./programs/${name}.ts`, import.meta.url)

async function run(how: string, device: string): Promise<{ code: number | null; signal: string | null; output: string }> {
  const child = spawn(process.execPath, [...process.execArgv, fileURLToPath(program('exit')), how], {
    env: { ...process.env, BUSY_DEVICE: device },
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text))
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  return { code, signal, output }
}

for (const device of testDevices()) {
  const ways: [string, number][] = [['process.exit', 3]]
  if (device === 'cpu') ways.push(['throw', 1], ['unread', 0])
  for (const [how, expected] of ways) {
    t.test(`${device}: a process that leaves by ${how} with work in flight`, async (t) => {
      const { code, signal, output } = await run(how, device)
      t.match(output, /started/)
      t.equal(signal, null, 'does not crash', { output })
      t.equal(code, expected)
    })
  }

  t.test(`${device}: Workers come and go with work in flight`, async (t) => {
    const start = async () => {
      const worker = new Worker(program('busy-worker'), { env: { ...process.env, BUSY_DEVICE: device } })
      await once(worker, 'message')
      return worker
    }
    const [first, second] = await Promise.all([start(), start()])
    const mine = await Device.open('cpu')
    const x = Tensor.from(mine, [1, 2])
    await first.terminate()
    await Promise.all([once(second, 'message'), once(second, 'message')])
    t.pass('the other one goes on')
    mine.ops.add(x, x, x, 1)
    t.strictSame([...(await x.data())], [2, 4], 'so does the main thread')
    await second.terminate()
    const third = await start()
    await third.terminate()
    t.pass('and a new one starts')
  })
}
