import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { SeededRandom } from '../random.js'
import type { Channel } from '../transport/channel.js'
import { type HeaderOf, message } from '../transport/messages.js'
import { FaultyTransport, type TransportFaults } from './faulty-transport.js'

const messageCount = 30

interface Outcome {
  /** Keys that arrived, in their order. */
  readonly arrived: number[]
  /** Code that ended receiving; undefined when the channel was closed properly. */
  readonly ended: string | undefined
  readonly sendFailed: string | undefined
}

const codeOf = (error: unknown): string => (isSecondsiteError(error) ? error.code : String(error))

async function receiveAll(channel: Channel): Promise<Omit<Outcome, 'sendFailed'>> {
  const arrived: number[] = []
  try {
    for await (const { header } of channel.receive()) arrived.push((header as HeaderOf<'digests'>).key)
    return { arrived, ended: undefined }
  } catch (error) {
    return { arrived, ended: codeOf(error) }
  }
}

async function talk(
  faults: TransportFaults,
  seed = 1,
): Promise<Outcome & { readonly transport: FaultyTransport }> {
  let receiving: Promise<Omit<Outcome, 'sendFailed'>> | undefined
  const serve = (channel: Channel): void => void (receiving = receiveAll(channel))
  const transport = new FaultyTransport({ serve, random: new SeededRandom(seed), faults })
  const channel = await transport.connect()
  let sendFailed: string | undefined
  try {
    for (let key = 0; key < messageCount; key += 1) {
      await channel.send(message('digests', { key }, new Uint8Array(1000).fill(key)))
    }
    await channel.close()
  } catch (error) {
    sendFailed = codeOf(error)
  }
  const received = (await receiving) ?? { arrived: [], ended: 'never served' }
  return { ...received, sendFailed, transport }
}

const upTo = (count: number): number[] => Array.from({ length: count }, (_, key) => key)

describe('a transport that fails on command', () => {
  it('cuts after a number of messages', async () => {
    const outcome = await talk({ cutAfterMessages: 5 })
    expect(outcome).toMatchObject({ arrived: upTo(5), ended: 'TRANSPORT_LOST', sendFailed: 'TRANSPORT_LOST' })
    expect(outcome.transport.counts.cuts).toBe(1)
  })

  it('cuts in the middle of a message, of which nothing arrives', async () => {
    // A message has 32 bytes of prefix, 9 or 10 of header and 1000 of body: byte 2500 lies in the third.
    const outcome = await talk({ cutAfterBytes: 2500 })
    expect(outcome).toMatchObject({ arrived: upTo(2), ended: 'TRANSPORT_LOST', sendFailed: 'TRANSPORT_LOST' })
  })

  it('damages bytes, which the receiver notices before it takes them', async () => {
    for (let seed = 1; seed <= 100; seed += 1) {
      const { arrived, ended, transport } = await talk({ corruptChance: 0.1 }, seed)
      expect(arrived, `seed ${seed}`).toEqual(upTo(arrived.length))
      if (transport.counts.corrupted === 0) expect(ended, `seed ${seed}`).toBeUndefined()
      else expect(['FRAME_CORRUPT', 'PROTOCOL_ERROR', 'TRANSPORT_LOST'], `seed ${seed}`).toContain(ended)
    }
  })

  it('repeats messages', async () => {
    const { arrived, transport } = await talk({ duplicateChance: 0.5 })
    expect(transport.counts.duplicated).toBeGreaterThan(0)
    expect(arrived).toHaveLength(messageCount + transport.counts.duplicated)
    expect([...new Set(arrived)]).toEqual(upTo(messageCount))
  })

  it('refuses the first connections', async () => {
    const transport = new FaultyTransport({
      serve: () => {},
      random: new SeededRandom(1),
      faults: { refusedConnects: 2 },
    })
    for (let attempt = 0; attempt < 2; attempt += 1) {
      await expect(transport.connect()).rejects.toMatchObject({
        code: 'TRANSPORT_FAILED',
        retryable: 'recoverable',
      })
    }
    await (await transport.connect()).close()
    expect(transport.counts).toMatchObject({ connects: 1, refused: 2 })
  })

  it('does the same again for the same seed, and something else for another', async () => {
    const faults = { cutChance: 0.05, corruptChance: 0.02, duplicateChance: 0.1 }
    const runs = await Promise.all([3, 3, 4, 5, 6].map((seed) => talk(faults, seed)))
    const told = runs.map(({ arrived, ended, sendFailed }) => JSON.stringify({ arrived, ended, sendFailed }))
    expect(told[0]).toBe(told[1])
    expect(new Set(told).size).toBeGreaterThan(1)
  })
})
