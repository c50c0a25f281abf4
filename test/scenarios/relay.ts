/**
 * Joins a transport that accepts channels with one that connects them: a faulty transport in front of a real one.
 */

import type { Channel, Serve, Transport } from '@secondsite/engine/testing'

/** Serves a channel by passing every message on to `transport` and back. */
export function relayTo(transport: Transport): Serve {
  return (outer) => void relay(outer, transport)
}

async function relay(outer: Channel, transport: Transport): Promise<void> {
  const inner = await transport.connect()
  await Promise.all([pump(outer, inner), pump(inner, outer)])
}

/** Passes messages on until either side ends, then closes both. */
async function pump(from: Channel, to: Channel): Promise<void> {
  try {
    for await (const message of from.receive()) await to.send(message)
  } catch {
    // The other side learns it by its channel being closed.
  }
  await Promise.allSettled([from.close(), to.close()])
}
