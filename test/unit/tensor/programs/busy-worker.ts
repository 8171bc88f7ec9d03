/** A Worker that keeps its queue busy and says so; it never stops by itself. */
import { parentPort } from 'node:worker_threads'
import { Device, Tensor } from '../../../../lib/tensor/index.js'

const device = await Device.open(process.env.BUSY_DEVICE ?? 'cpu')
const x = Tensor.zeros(device, [256, 256])
const y = Tensor.zeros(device, [256, 256])
let step = 0
for (;;) {
  for (let i = 0; i < 50; i++) device.ops.matmul(y, x, x, 0, 0, 1, 0)
  const reads = [y.data(), x.data(), device.settled()]
  parentPort?.postMessage(step++)
  await (step % 2 ? reads[0] : device.settled())
}
