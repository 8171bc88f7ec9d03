import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'

interface Message {
  step?: number
  losses?: number[]
  answers?: string[]
  after?: number[]
}

const program = new URL('./programs/training-worker.ts', import.meta.url)

function start(maxSteps: number, outputDir: string) {
  const worker = new Worker(program, { workerData: { maxSteps, outputDir } })
  const failed = once(worker, 'error').then(([error]) => {
    throw error
  })
  failed.catch(() => {})
  const stepped = async (step: number) => {
    for (;;) {
      const [message] = (await Promise.race([once(worker, 'message'), failed])) as [Message]
      if ((message.step ?? 0) >= step) return
    }
  }
  const ended = new Promise<Message>((resolve, reject) => {
    worker.on('message', (message: Message) => message.losses && resolve(message))
    failed.catch(reject)
  })
  return { worker, stepped, ended }
}

t.test("two Workers train and generate; one is terminated, the other's results stay right", async (t) => {
  const dir = t.testdir({ alone: {}, beside: {}, doomed: {} })
  const reference = await start(3, `${dir}/alone`).ended
  t.equal(reference.losses!.length, 3)
  t.equal(reference.answers!.length, 1, 'the base answers the same during a training')
  const other = start(3, `${dir}/beside`)
  const doomed = start(1_000_000, `${dir}/doomed`)
  await doomed.stepped(2)
  await doomed.worker.terminate()
  t.same(await other.ended, reference)
})
