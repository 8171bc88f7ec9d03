/** Downloads a model into a cache and tells of every part that has arrived. */
import { downloadModel } from '../../../../lib/hub/download.js'

await downloadModel('org/tiny', {
  cacheDir: process.argv[2],
  onProgress: ({ file, loadedBytes }) => console.log(`${file} ${loadedBytes}`),
})
