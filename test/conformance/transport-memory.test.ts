import { type MemoryTransport, memoryTransport } from '@secondsite/engine/testing'
import { describeTransport } from './transport.js'

const made: MemoryTransport[] = []

describeTransport({
  name: 'in memory',
  systemBufferBytes: 0,
  create: async (serve) => {
    const transport = memoryTransport(serve)
    made.push(transport)
    return transport
  },
  breakAll: async () => {
    for (const transport of made.splice(0)) transport.breakAll()
  },
})
