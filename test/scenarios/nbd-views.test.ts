/**
 * Recovery points and test failovers as clients of others see them over NBD: qemu-img, qemu-io, nbdinfo and nbdcopy read a
 * point while cycles are applied beside it, and write to a layer of their own.
 */

import { readFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { client, qemuIo } from './clients.js'
import { DISKS, expectShows, type Moment, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

let place: RecoveryPlace
let before: Moment

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 24, recoveryPointIntervalSeconds: 3600 })
  before = await place.cycle(60)
  await place.cycle(60)
})

afterEach(() => place.end())

const socket = (name: string): { readonly listen: string } => ({ listen: `unix:${place.path(name)}` })
const isEqual = (path: string, expected: Buffer | undefined): boolean =>
  expected !== undefined && readFileSync(path).equals(expected)

describe('a recovery point over NBD', () => {
  it('is listed and read as it was, by many clients at once, while cycles are applied beside it', async () => {
    await using view = await place.replica.openView({ timeMs: before.timeMs })
    await using nbd = await view.exportNbd(socket('view.sock'))
    const listed = JSON.parse(await client('nbdinfo', '--list', '--json', nbd.uri('')))
    const found = listed.exports.map((one: Record<string, unknown>) => [
      one['export-name'],
      one['export-size'],
      one['is_read_only'],
    ])
    expect(found.toSorted()).toEqual([
      ['data.raw', MIB, true],
      ['os.raw', 2 * MIB, true],
    ])
    const copies = Array.from({ length: 6 }, (_, number) => place.path(`copy-${number}.raw`))
    const copying = copies.map((path) => client('nbdcopy', nbd.uri('os.raw'), path))
    const applying = (async () => {
      for (let cycle = 0; cycle < 6; cycle += 1) await place.cycle(10, 20)
    })()
    await Promise.all([...copying, applying])
    for (const path of copies) expect(isEqual(path, before.disks.get('os.raw')), path).toBe(true)
    const converted = place.path('converted.raw')
    await client('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', nbd.uri('data.raw'), converted)
    expect(isEqual(converted, before.disks.get('data.raw'))).toBe(true)
    place.expectEqual(DISKS)
  })

  it('refuses every write', async () => {
    await using view = await place.replica.openView({ timeMs: before.timeMs })
    await using nbd = await view.exportNbd(socket('view.sock'))
    for (const command of ['write 0 512', 'write -z 0 64k', 'discard 0 64k'])
      await expect(qemuIo(nbd.uri('os.raw'), command), command).rejects.toThrow(
        /permission denied|read.?only/i,
      )
    await expectShows(view, before)
    expect(nbd.counters().writtenBytes).toBe(0)
  })

  it('is gone for its clients with the view', async () => {
    const view = await place.replica.openView({ timeMs: before.timeMs })
    const nbd = await view.exportNbd(socket('view.sock'))
    await client('nbdinfo', '--size', nbd.uri('os.raw'))
    await view.close()
    await expect(client('nbdinfo', '--size', nbd.uri('os.raw'))).rejects.toThrow(/connect|No such file/i)
  })
})

describe('a test failover over NBD', () => {
  it('takes the writes of its clients, and neither the point nor replication sees them', async () => {
    const test = await place.replica.startTestFailover({ point: { timeMs: before.timeMs } })
    await using nbd = await test.exportNbd(socket('test.sock'))
    const uri = nbd.uri(test.disks[0]?.name ?? '')
    await qemuIo(uri, 'write -P 9 64k 128k', 'write -z 256k 64k', 'discard 512k 64k', 'flush')
    await place.cycle(60)
    await qemuIo(uri, 'read -P 9 64k 128k', 'read -P 0 256k 64k', 'read -P 0 512k 64k')
    const name = test.disks[0]?.name ?? ''
    const expected = Buffer.from(before.disks.get(name) ?? [])
    expected
      .fill(9, 64 * KIB, 192 * KIB)
      .fill(0, 256 * KIB, 320 * KIB)
      .fill(0, 512 * KIB, 576 * KIB)
    await client('nbdcopy', uri, place.path('copy.raw'))
    expect(isEqual(place.path('copy.raw'), expected)).toBe(true)
    await using view = await place.replica.openView({ timeMs: before.timeMs })
    await expectShows(view, before)
    place.expectEqual(DISKS)
    await test.stop()
  })
})
