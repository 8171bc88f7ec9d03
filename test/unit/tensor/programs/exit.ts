/** Queues seconds of work and leaves in the way that its argument names. */
import { Device, Tensor } from '../../../../lib/tensor/index.js'

const device = await Device.open(process.env.BUSY_DEVICE ?? 'cpu')
const x = Tensor.zeros(device, [512, 512])
const y = Tensor.zeros(device, [512, 512])
const queueWork = () => {
  for (let i = 0; i < 3000; i++) device.ops.matmul(y, x, x, 0, 0, 1, 0)
}
console.log('started')
if (process.argv[2] === 'unread') {
  queueWork() // no promise waits for it: the process ends by itself
} else {
  queueWork()
  const reading = y.data()
  if (process.argv[2] === 'throw') throw new Error('on purpose')
  reading.catch(() => {})
  process.exit(3)
}
