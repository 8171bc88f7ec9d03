import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { env } from '../../../lib/env.js'
import { Device, Tensor } from '../../../lib/tensor/index.js'

t.test('one device per name', async (t) => {
  const device = await Device.open('cpu')
  t.equal(await Device.open('cpu'), device)
  t.equal(device.name, 'cpu')
  t.match(device.variant, /^(generic|avx2|avx512|avx512bf16)$/)
  t.ok(device.attentionPlanSize(10, 10) > 0)
})

t.test('devices that cannot be used', async (t) => {
  await t.rejects(Device.open('tpu'), {
    code: 'ERR_DEVICE',
    message: /'tpu' cannot be used: there is no such device; known are/,
  })
  await t.rejects(Device.open('cuda:x'), { code: 'ERR_DEVICE', message: /index must be a number/ })
  delete process.env.QUANTUNE_TEST_DEVICES
  await t.rejects(Device.open('cpu-late'), { code: 'ERR_DEVICE', message: /QUANTUNE_TEST_DEVICES=1/ })
  const cuda = await Device.open('cuda').catch((error) => error)
  if (cuda instanceof Device) t.equal((await Device.open('auto')).name, 'cuda')
  else {
    t.match(cuda, { code: 'ERR_DEVICE', details: { device: 'cuda' }, message: /'cuda' cannot be used: / })
    t.equal((await Device.open()).name, 'cpu', 'auto falls back')
  }
})

t.test('QUANTUNE_CPU', async (t) => {
  const script = fileURLToPath(new URL('./programs/variant.ts', import.meta.url))
  const variant = (name: string) =>
    spawnSync(process.execPath, [...process.execArgv, script], {
      env: { ...process.env, QUANTUNE_CPU: name },
      encoding: 'utf8',
    }).stdout
  t.match(variant('generic'), 'variant generic')
  t.match(variant('best'), /ERR_DEVICE .*QUANTUNE_CPU=best is not a variant of this build; known are generic/)
})

t.test('results do not depend on the number of threads', async (t) => {
  const device = await Device.open('cpu')
  const results: string[] = []
  const before = env.numThreads
  for (const threads of [1, 2, 3, 7]) {
    env.numThreads = threads
    await device.settled()
    const x = Tensor.empty(device, [300, 200])
    const y = Tensor.empty(device, [300, 300])
    const norm = Tensor.empty(device, [1])
    device.ops.random_normal(x, 5, 1, 0, 1)
    device.ops.matmul(y, x, x, 0, 1, 1, 0)
    device.ops.grad_norm(norm, [x, y])
    results.push(Buffer.from((await y.data()).buffer).toString('base64') + (await norm.item()))
  }
  env.numThreads = before
  t.ok(results.every((result) => result === results[0]))
})
