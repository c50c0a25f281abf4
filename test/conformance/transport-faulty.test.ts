import { FaultyTransport, SeededRandom } from '@secondsite/engine/testing'
import { describeTransport } from './transport.js'

// Without a fault asked for, the transport that fails on command keeps every promise; delays break none either.
for (const faults of [{}, { delayMsMax: 1 }]) {
  const made: FaultyTransport[] = []

  describeTransport({
    name: `that fails on command, with ${JSON.stringify(faults)}`,
    systemBufferBytes: 0,
    create: async (serve) => {
      const transport = new FaultyTransport({ serve, random: new SeededRandom(1), faults })
      made.push(transport)
      return transport
    },
    breakAll: async () => {
      for (const transport of made.splice(0)) transport.cutAll()
    },
  })
}
