import { Engine, formatBytes, isSecondsiteError } from '@secondsite/engine'
import { workplace } from './workplace.mjs'

const { disk, stateDirectory, replica, remove } = workplace(64 * 1024 * 1024)
const engine = await Engine.open({ stateDirectory, batchBytes: 4 * 1024 * 1024 })
const web01 = await engine.enable({ name: 'web01', disks: [disk], replica })

// Stops in the middle; what was copied is kept.
const stop = new AbortController()
try {
  await web01.startInitialReplication({
    signal: stop.signal,
    onProgress: ({ doneBytes, totalBytes }) => {
      console.log(`${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`)
      if (doneBytes > totalBytes / 4) stop.abort()
    },
  })
} catch (error) {
  if (!isSecondsiteError(error, 'ABORTED')) throw error
  console.log(`stopped: ${error.message}; next step: ${error.hint}`)
}

await web01.cancelInitialReplication()
await web01.startInitialReplication({
  onProgress: ({ doneBytes }) => console.log(`went on, ${formatBytes(doneBytes)} done`),
})
console.log(`state ${web01.state}`)

await engine.close()
remove()
