import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { downloadModel } from '../../../lib/hub/download.js'
import { compile } from '../../support/compile.js'
import { commit, etagOf, FakeHub } from './server.js'

const programs = 'test/unit/hub/programs'
const program = join(compile('hub-download', ['lib', programs]), programs, 'download.js')
const config = Buffer.from('{"model_type":"llama"}')
const weights = Buffer.concat(Array.from({ length: 40_000 }, (_, i) => createHash('sha256').update(String(i)).digest()))

async function serve(t: Test, parts: number) {
  const hub = new FakeHub(new Map(Object.entries({ 'config.json': config, 'model.safetensors': weights })))
  hub.parts = parts
  const endpoint = await hub.listen()
  t.teardown(() => hub.close())
  const cacheDir = t.testdir()
  const repository = join(cacheDir, 'models--org--tiny')
  const start = () =>
    spawn(process.execPath, [program, cacheDir], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, HF_ENDPOINT: endpoint, HF_HUB_OFFLINE: '' },
    })
  return { hub, endpoint, cacheDir, blobs: join(repository, 'blobs'), snapshot: join(repository, 'snapshots', commit), start }
}

/** Until the process tells of a part of the weights. */
function underWay(child: ChildProcess): Promise<void> {
  let text = ''
  return new Promise((resolve) => {
    child.stdout!.on('data', (chunk) => {
      text += chunk
      if (/model\.safetensors [1-9]/.test(text)) resolve()
    })
  })
}

t.test('two processes that want the same file', async (t) => {
  const { hub, cacheDir, blobs, snapshot, start } = await serve(t, 60)
  const children = [start(), start()]
  for (const child of children) child.stdout!.resume()
  const codes = await Promise.all(children.map((child) => once(child, 'exit')))
  t.same(codes, [
    [0, null],
    [0, null],
  ])
  t.equal(hub.requests.filter(({ method, url }) => method === 'GET' && url === '/model.safetensors').length, 2, 'side by side')
  t.ok(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  t.ok(readFileSync(join(snapshot, 'config.json')).equals(config))
  t.same(readdirSync(blobs).sort(), [etagOf(weights), etagOf(config)].sort(), 'nothing else stays')
  t.equal(readFileSync(join(cacheDir, 'models--org--tiny/refs/main'), 'utf8'), commit)
})

t.test('a process that was killed leaves its part to the next one, and a running one keeps its own', async (t) => {
  const { hub, endpoint, cacheDir, blobs, snapshot, start } = await serve(t, 200)
  const killed = start()
  await underWay(killed)
  const running = start()
  await underWay(running)
  killed.kill('SIGKILL')
  await once(killed, 'exit')
  const part = readdirSync(blobs).find((name) => name.includes(`.${killed.pid}-`))!
  t.ok(part?.endsWith('.incomplete'))
  hub.requests.length = 0
  process.env.HF_ENDPOINT = endpoint
  t.teardown(() => delete process.env.HF_ENDPOINT)
  hub.parts = 1
  await downloadModel('org/tiny', { cacheDir })
  const { range } = hub.requests.find(({ method, url }) => method === 'GET' && url === '/model.safetensors')!
  t.match(range, /^bytes=[1-9]\d*-$/, 'it goes on')
  t.ok(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  t.same(await once(running, 'exit'), [0, null])
  t.ok(readFileSync(join(snapshot, 'model.safetensors')).equals(weights), 'the one that ends last changes nothing')
  t.notOk(readdirSync(blobs).some((name) => name.endsWith('.incomplete')))
})

t.test('a part of another machine is not touched', async (t) => {
  const { endpoint, cacheDir, blobs } = await serve(t, 1)
  process.env.HF_ENDPOINT = endpoint
  t.teardown(() => delete process.env.HF_ENDPOINT)
  mkdirSync(blobs, { recursive: true })
  const theirs = `${etagOf(weights)}.not-${hostname()}.2147483646-01234567.incomplete`
  writeFileSync(join(blobs, theirs), weights.subarray(0, 10))
  await downloadModel('org/tiny', { cacheDir })
  t.ok(readFileSync(join(blobs, theirs)).equals(weights.subarray(0, 10)))
})
