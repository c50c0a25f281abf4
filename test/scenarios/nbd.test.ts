import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Engine, ProtectedMachine } from '@secondsite/engine'
import { client } from './clients.js'
import { MIB, Workplace } from './workplace.js'

let place: Workplace
let engine: Engine
let machine: ProtectedMachine

beforeEach(async () => {
  place = new Workplace()
  engine = await place.open()
  const disks = [place.makeDisk('os.raw', 16 * MIB), place.makeDisk('data.raw', 64 * MIB, MIB)]
  machine = await place.enable(engine, disks)
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

const listen = (): string => `unix:${place.path('nbd.sock')}`

describe('an exported machine', () => {
  it('offers its disks by name, and what clients write is replicated', async () => {
    await using nbd = await machine.exportNbd({ listen: listen() })
    const listed = JSON.parse(await client('nbdinfo', '--list', '--json', nbd.uri('')))
    const names = listed.exports.map((one: Record<string, string>) => one['export-name'])
    expect(names.sort()).toEqual(['data.raw', 'os.raw'])
    await machine.startInitialReplication()
    const uri = nbd.uri('os.raw')
    await client(
      'qemu-io',
      '-f',
      'raw',
      '-c',
      'write -P 7 1M 64k',
      '-c',
      'write -z 2M 1M',
      '-c',
      'flush',
      uri,
    )
    await client('nbdcopy', uri, place.path('copy.raw'))
    expect(readFileSync(place.path('copy.raw')).equals(readFileSync(place.path('os.raw')))).toBe(true)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    expect(readFileSync(place.path('os.raw'))[MIB]).toBe(7)
    expect(nbd.counters()).toMatchObject({ connectionCount: 0, errorCount: 0 })
    expect(nbd.counters().writtenBytes).toBe(64 * 1024)
  })

  it('refuses writes where it is read-only, and everybody once it is closed', async () => {
    const nbd = await machine.disks[0]?.exportNbd({ listen: listen(), readOnly: true })
    if (!nbd) throw new Error('no disk')
    await expect(client('qemu-io', '-f', 'raw', '-c', 'write 0 512', nbd.uri('os.raw'))).rejects.toThrow(
      /permission denied|read.?only/i,
    )
    await client('qemu-io', '-r', '-f', 'raw', '-c', 'read 0 512', nbd.uri('os.raw'))
    await nbd.close()
    await expect(client('nbdinfo', nbd.uri('os.raw'))).rejects.toThrow()
  })

  it('may be closed while clients write: what was answered is in the log', async () => {
    await machine.startInitialReplication()
    const nbd = await machine.exportNbd({ listen: listen() })
    const fio = spawn(
      'fio',
      [
        '--name=w',
        '--ioengine=nbd',
        `--uri=${nbd.uri('data.raw')}`,
        '--rw=randwrite',
        '--bs=4k',
        '--iodepth=8',
      ].concat(['--size=64M', '--rate=8m', '--time_based', '--runtime=30', '--thread', '--max_latency=20s']),
      { stdio: 'ignore', cwd: place.folder },
    )
    const gone = once(fio, 'exit')
    await expect.poll(() => nbd.counters().writtenBytes, { timeout: 20_000 }).toBeGreaterThan(MIB)
    await machine.replicate()
    await nbd.close()
    fio.kill('SIGKILL')
    await gone
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    expect(machine.state).toBe('Replicating')
  })

  it('tells what is wrong with an address, and takes over the socket of a dead process', async () => {
    for (const bad of ['nbd.sock', 'unix:', 'tcp:localhost', 'http://x:1']) {
      await expect(machine.exportNbd({ listen: bad })).rejects.toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    }
    await expect(machine.exportNbd({ listen: 'unix:/nowhere/nbd.sock' })).rejects.toMatchObject({
      code: 'NBD_LISTEN_FAILED',
    })
    const first = await machine.exportNbd({ listen: listen() })
    await expect(machine.exportNbd({ listen: listen() })).rejects.toMatchObject({
      code: 'NBD_ADDRESS_IN_USE',
    })
    await first.close()
    execFileSync('python3', [
      '-c',
      `import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()`,
      place.path('nbd.sock'),
    ])
    await using again = await machine.exportNbd({ listen: listen() })
    await client('nbdinfo', again.uri('os.raw'))
  })

  it('listens at a port of its own choice', async () => {
    await using nbd = await machine.exportNbd({ listen: 'tcp:127.0.0.1:0' })
    expect(nbd.uri('os.raw')).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/os\.raw$/)
    expect(await client('nbdinfo', '--size', nbd.uri('os.raw'))).toBe(`${16 * MIB}\n`)
  })
})
