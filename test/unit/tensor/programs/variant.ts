/** Says which variant of the CPU backend is used, or why none is. */
import { Device } from '../../../../lib/tensor/index.js'

const device = await Device.open('cpu').catch((error) => `${error.code} ${error.message}`)
console.log(typeof device === 'string' ? device : `variant ${device.variant}`)
