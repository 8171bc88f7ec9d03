import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { downloadModel } from '../../../lib/hub/download.js'
import { Model } from '../../../lib/model/model.js'
import { deviation, golden, logitsOf } from '../model/goldens.js'
import { commit, etagOf, FakeHub } from './server.js'

const names = ['config.json', 'generation_config.json', 'model.safetensors']
const files = new Map<string, Buffer>()
for (const name of names) files.set(name, await readFile(golden(`models/llama/${name}`)))
for (const name of ['README.md', 'pytorch_model.bin', 'onnx/model.onnx', '../evil.json'])
  files.set(name, Buffer.from('not wanted'))
const weights = files.get('model.safetensors')!

const variables = ['HF_ENDPOINT', 'HF_TOKEN', 'HF_HOME', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE', 'HF_TOKEN_PATH'] as const
const environment = Object.fromEntries(variables.map((name) => [name, process.env[name]]))

async function setUp(t: Pick<Test, 'teardown'>, options: ConstructorParameters<typeof FakeHub>[1] = {}, served = files) {
  const home = await mkdtemp(join(tmpdir(), 'quantune-hub-'))
  const hub = new FakeHub(served, options)
  for (const name of variables) delete process.env[name]
  process.env.HF_ENDPOINT = `${await hub.listen()}/`
  process.env.HF_HOME = home
  t.teardown(async () => {
    for (const name of variables) {
      if (environment[name] === undefined) delete process.env[name]
      else process.env[name] = environment[name]
    }
    await hub.close()
    await rm(home, { recursive: true })
  })
  const repository = join(home, 'hub', 'models--org--tiny')
  return { hub, home, repository, snapshot: join(repository, 'snapshots', commit) }
}

t.test('the standard cache', async (t) => {
  const { hub, repository, snapshot } = await setUp(t)
  const progress: number[] = []
  const folder = await downloadModel('org/tiny', {
    onProgress: ({ file, loadedBytes, totalBytes }) => {
      if (file === 'model.safetensors') progress.push(loadedBytes / totalBytes)
    },
  })
  t.equal(folder, snapshot)
  t.same((await readdir(snapshot)).sort(), names, 'only what is needed')
  t.equal(await readFile(join(repository, 'refs/main'), 'utf8'), commit)
  t.ok((await lstat(join(snapshot, 'model.safetensors'))).isSymbolicLink())
  t.equal(await readlink(join(snapshot, 'model.safetensors')), `../../blobs/${etagOf(weights)}`)
  t.ok((await readFile(join(snapshot, 'model.safetensors'))).equals(weights))
  t.equal(progress[0], 0)
  t.equal(progress.at(-1), 1)

  const before = hub.requests.length
  await downloadModel('org/tiny')
  t.same(
    hub.requests.slice(before).map(({ method, url }) => `${method} ${url}`),
    ['GET /api/models/org/tiny/revision/main'],
  )

  process.env.HF_HUB_OFFLINE = '1'
  t.equal(await downloadModel('org/tiny'), snapshot)
  t.equal(await downloadModel('org/tiny', { revision: commit }), snapshot)
  await t.rejects(downloadModel('org/tiny', { revision: 'v2' }), { code: 'ERR_HUB_NOT_FOUND', message: /not in the cache/ })
  t.equal(hub.requests.length, before + 1, 'offline asks nobody')
})

t.test('a model by its id', async (t) => {
  await setUp(t)
  const stages: string[] = []
  await using model = await Model.fromPretrained('org/tiny', {
    device: 'cpu',
    onProgress: ({ stage }) => void stages.push(stage),
  })
  await using local = await Model.fromPretrained(golden('models/llama'), { device: 'cpu' })
  t.same([...new Set(stages)], ['download', 'load'])
  t.equal(deviation(await logitsOf(model, [[1, 2]]), await logitsOf(local, [[1, 2]])), 0)
  await using offline = await Model.fromPretrained('org/tiny', { device: 'cpu', localFilesOnly: true })
  t.equal(offline.config.model_type, 'llama')
})

t.test('a cut connection is resumed', async (t) => {
  const { hub, repository, snapshot } = await setUp(t)
  hub.cutAfter = 100_000
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_IO' })
  const partial = join(repository, 'blobs', `${etagOf(weights)}.incomplete`)
  const { size } = await stat(partial)
  t.ok(size > 0 && size <= 100_000, `${size} bytes are kept`)
  await t.rejects(stat(join(repository, 'refs/main')))
  await downloadModel('org/tiny')
  t.ok((await readFile(join(snapshot, 'model.safetensors'))).equals(weights))
  t.equal(hub.requests.filter(({ method }) => method === 'GET').at(-1)!.range, `bytes=${size}-`)
})

t.test('a server without ranges sends all again', async (t) => {
  const { hub, snapshot } = await setUp(t)
  hub.cutAfter = 100_000
  hub.ignoreRanges = true
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_IO' })
  await downloadModel('org/tiny')
  t.ok((await readFile(join(snapshot, 'model.safetensors'))).equals(weights))
})

t.test('two calls at once, and bytes that are not the promised ones', async (t) => {
  const { hub, repository } = await setUp(t)
  await Promise.all([downloadModel('org/tiny'), downloadModel('org/tiny')])
  const gets = hub.requests.filter(({ method, url }) => method === 'GET' && url === '/model.safetensors')
  t.equal(gets.length, 1)
  const other = await mkdtemp(join(tmpdir(), 'quantune-hub-'))
  t.teardown(() => rm(other, { recursive: true }))
  const blobs = join(other, 'models--org--tiny', 'blobs')
  await mkdir(blobs, { recursive: true })
  const partial = join(blobs, `${etagOf(weights)}.incomplete`)
  await writeFile(partial, Buffer.alloc(1000))
  await t.rejects(downloadModel('org/tiny', { cacheDir: other }), { code: 'ERR_CORRUPT_FILE', message: /promised/ })
  await t.rejects(stat(partial), 'it does not stay')
  await downloadModel('org/tiny', { cacheDir: other })
  t.ok((await readFile(join(blobs, etagOf(weights)))).equals(weights))
  t.ok((await readdir(join(repository, 'blobs'))).every((name) => !name.endsWith('.incomplete')))
})

t.test('abort', async (t) => {
  const { repository } = await setUp(t)
  const controller = new AbortController()
  const reason = new Error('enough')
  const onProgress = ({ file, loadedBytes }: { file: string; loadedBytes: number }) => {
    if (file === 'model.safetensors' && loadedBytes > 0) controller.abort(reason)
  }
  await t.rejects(downloadModel('org/tiny', { signal: controller.signal, onProgress }), reason)
  t.same((await readdir(join(repository, 'snapshots', commit))).sort(), names.slice(0, 2))
  await t.rejects(downloadModel('org/tiny', { signal: controller.signal }), reason)
  await downloadModel('org/tiny')
})

t.test('tokens', async (t) => {
  const { hub, home } = await setUp(t, { token: 'hf_secret' })
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_HUB_UNAUTHORIZED', message: /no token was given/ })
  await t.rejects(downloadModel('org/tiny', { token: 'wrong' }), { code: 'ERR_HUB_UNAUTHORIZED', message: /does not allow/ })
  hub.requests.length = 0
  await writeFile(join(home, 'token'), 'hf_secret\n')
  await downloadModel('org/tiny')
  const toContent = hub.requests.filter(({ url }) => url === '/model.safetensors')
  t.ok(toContent.length > 0)
  t.ok(
    toContent.every(({ token }) => token === undefined),
    'the content network never sees the token',
  )
  process.env.HF_TOKEN = 'wrong'
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_HUB_UNAUTHORIZED' }, 'HF_TOKEN wins over the file')
  await downloadModel('org/tiny', { token: 'hf_secret' })
})

t.test('what is not there', async (t) => {
  await setUp(t)
  await t.rejects(downloadModel('org/none'), { code: 'ERR_HUB_NOT_FOUND', message: /org\/none/ })
  await t.rejects(downloadModel('org/tiny', { revision: 'v2' }), { code: 'ERR_HUB_NOT_FOUND', message: /v2/ })
  for (const id of ['a/b/c', '../x', 'org/..', 'org name', '']) {
    await t.rejects(downloadModel(id), { code: 'ERR_INVALID_ARGUMENT' }, JSON.stringify(id))
  }
  await t.rejects(downloadModel('org/tiny', { revision: '../../x' }), { code: 'ERR_INVALID_ARGUMENT' })
  await t.rejects(Model.fromPretrained('./no/such/folder'), { code: 'ERR_IO', message: /no\/such\/folder/ })
  await t.rejects(Model.fromPretrained(golden('models/llama/config.json')), {
    code: 'ERR_INVALID_ARGUMENT',
    message: /is a file/,
  })
  process.env.HF_ENDPOINT = 'http://127.0.0.1:1'
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_IO', message: /cannot reach http:\/\/127\.0\.0\.1:1/ })
})

t.test('a private model and pickles', async (t) => {
  await setUp(t, { missing: true })
  await t.rejects(downloadModel('org/tiny'), { code: 'ERR_HUB_NOT_FOUND', message: /if it is private/ })
  await t.test('pickles', async (t) => {
    const pickled = new Map([...files].filter(([name]) => name !== 'model.safetensors'))
    await setUp(t, {}, pickled)
    await t.rejects(downloadModel('org/tiny'), { code: 'ERR_CORRUPT_FILE', message: /pickles only/ })
  })
})
