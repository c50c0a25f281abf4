/**
 * PostgreSQL in a guest, its cluster on a protected disk, with two loads: pgbench, and one session that commits one number
 * after the other and tells of each. A server that is started on what the replica serves finds what these say: every number
 * that was committed before a point is in it, without a gap, and the sums of pgbench agree. A point that was made at rest has
 * nothing to redo. The clients at home go on all the time: a failover fences a primary, it does not stop its guest.
 */

import { openReplica, type ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { bootGuest, type Guest, type GuestCommand, missingForGuest } from '../guest/guest.js'
import { makeClusterDisk, makeToolsDisk, missingForPostgres } from '../guest/postgres.js'
import { skip } from './tools.js'
import { Workplace } from './workplace.js'

const missing = missingForGuest() ?? missingForPostgres()
const LIMIT_MS = 120_000

/** Run by qemu-guest-agent in the guest: clients pause, then everything is in the data files. */
const HOOK = `#!/bin/sh
case "$1" in
freeze) killall -STOP pgbench; killall -STOP psql; exec /tools/sql data -c CHECKPOINT ;;
thaw) killall -CONT psql; killall -CONT pgbench; exit 0 ;;
esac
`
/** Runs psql on the server of a folder: \`sql FOLDER ARGUMENT…\`. */
const SQL = `#!/bin/sh
folder=$1; shift
exec /tools/run psql -X -q -A -t -v ON_ERROR_STOP=1 -h /tmp/$folder -U postgres "$@"
`
const RUN = `#!/bin/sh
program=$(echo /tools/usr/lib/postgresql/*/bin/)$1; shift
export LD_LIBRARY_PATH=/tools/lib
exec "$program" "$@"
`
/** Checkpoints come from the hook alone, so that what a start redoes can be told. */
const SETTINGS = {
  listen_addresses: '',
  shared_buffers: '16MB',
  max_connections: '10',
  jit: 'off',
  autovacuum: 'off',
  checkpoint_timeout: '1d',
  max_wal_size: '64MB',
  log_checkpoints: 'on',
}

let place: Workplace
let ends: (() => Promise<void>)[]
let userId: number

beforeEach(() => {
  place = new Workplace()
  ends = []
})

afterEach(async () => {
  for (const end of ends.toReversed()) await end()
  place.remove()
})

/** A server that runs in a guest, its cluster on the disk `/dev/NAME` mounted at `/FOLDER`. */
async function startServer(guest: Guest, device: string, folder: string): Promise<GuestCommand> {
  await guest.run(`mkdir -p /${folder} /tmp/${folder} && mount /dev/${device} /${folder}`)
  // The file of a server that was killed names a process; in this guest that may be somebody else.
  await guest.run(`chmod 777 /tmp/${folder} && rm -f /${folder}/pg/postmaster.pid`)
  const program = '$(echo /tools/usr/lib/postgresql/*/bin/postgres)'
  const server = guest.start(
    `LD_LIBRARY_PATH=/tools/lib exec start-stop-daemon -S -p /tmp/${folder}.pid -c ${userId} -x ${program} -- -D /${folder}/pg -k /tmp/${folder}`,
  )
  await server.line((line) => line.includes('ready to accept connections'), LIMIT_MS)
  return server
}

async function mountTools(guest: Guest, device: string): Promise<void> {
  await guest.run(
    `mkdir -p /tools /dev/shm && mount -t tmpfs tmpfs /dev/shm && mount -o ro /dev/${device} /tools`,
  )
  // The server refuses to run as root, and its user must have a name.
  await guest.run(`echo 'postgres:x:${userId}:${userId}::/:/bin/sh' >> /etc/passwd`)
}

/** Commits 1, 2, 3 and so on, each in a transaction of its own. */
class Ledger {
  constructor(private readonly command: GuestCommand) {}

  static async start(guest: Guest): Promise<Ledger> {
    await guest.run("/tools/sql data -c 'CREATE TABLE ledger (number int PRIMARY KEY)'")
    const lines = `print "INSERT INTO ledger VALUES ("$1");"; print "\\\\echo committed "$1`
    return new Ledger(guest.start(`seq 1 10000000 | awk '{${lines}}' | /tools/sql data`))
  }

  /** The newest number that is known to be committed. */
  get committed(): number {
    const line = this.command.lines.findLast((text) => text.startsWith('committed '))
    return Number(line?.slice('committed '.length) ?? 0)
  }

  async advance(count: number): Promise<void> {
    const wanted = this.committed + count
    await this.command.line((line) => Number(/^committed (\d+)$/.exec(line)?.[1] ?? 0) >= wanted, LIMIT_MS)
  }
}

/** What a server that was started on a point has in it. */
async function contentOf(
  guest: Guest,
  folder: string,
): Promise<{ count: number; newest: number; sums: number[] }> {
  const sums = [
    'bbalance) FROM pgbench_branches',
    'tbalance) FROM pgbench_tellers',
    'abalance) FROM pgbench_accounts',
    'delta) FROM pgbench_history',
  ]
  const columns = sums.map((sum) => `(SELECT coalesce(sum(${sum.replace(')', '), 0)')})`)
  const query = `SELECT count(*), coalesce(max(number), 0), ${columns.join(', ')} FROM ledger`
  const output = await guest.run(`/tools/sql ${folder} -c "${query}"`, LIMIT_MS)
  const [count = 0, newest = 0, ...rest] = (output.split('\n').at(-1) ?? '').split('|').map(Number)
  return { count, newest, sums: rest }
}

/** Bytes of log that a start went through; 0 when it had to redo nothing. */
function redoneBytes(server: GuestCommand): number {
  const lsn = (pattern: RegExp): number => {
    const [, high = '0', low = '0'] = pattern.exec(server.output) ?? []
    return Number.parseInt(high, 16) * 2 ** 32 + Number.parseInt(low, 16)
  }
  return lsn(/redo done at ([0-9A-F]+)\/([0-9A-F]+)/) - lsn(/redo starts at ([0-9A-F]+)\/([0-9A-F]+)/)
}

/** A machine whose disk has a cluster, exported, and where a guest finds it. */
async function protect(): Promise<{ machine: ProtectedMachine; nbd: string }> {
  userId = makeClusterDisk(place.path('data.raw'), SETTINGS)
  makeToolsDisk(place.path('tools.raw'), { hook: HOOK, sql: SQL, run: RUN })
  const engine = await place.open()
  ends.push(() => engine.close())
  const machine = await place.enable(engine, [place.path('data.raw')], {
    replicationFrequencySeconds: 86_400,
    recoveryPoints: 4,
    quiesce: { method: 'guest-agent', socketPath: place.path('agent.sock'), frozenLimitSeconds: 60 },
  })
  const served = await machine.exportNbd({ listen: `unix:${place.path('web01.sock')}` })
  return { machine, nbd: served.uri('data.raw') }
}

/** A guest of that disk, with an agent that freezes it. */
async function boot(nbd: string): Promise<Guest> {
  const guest = await bootGuest({
    drives: [{ nbd }, { file: place.path('tools.raw'), isReadOnly: true }],
    memoryMiB: 384,
    agentSocketPath: place.path('agent.sock'),
  })
  ends.push(() => guest.kill())
  await mountTools(guest, 'vdb')
  guest.start(
    'LD_LIBRARY_PATH=/tools/lib exec /tools/usr/sbin/qemu-ga -m virtio-serial -p $(echo /dev/vport*p2) -t /tmp -f /tmp/ga.pid -F/tools/hook',
  )
  return guest
}

describe('PostgreSQL in a guest', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('postgres', missing))
    return
  }

  it('recovers from any point with everything committed before; one made at rest has nothing to redo', async () => {
    const { machine, nbd } = await protect()
    const guest = await boot(nbd)
    const server = await startServer(guest, 'vda', 'data')
    await guest.run('/tools/run pgbench -h /tmp/data -U postgres -i -q postgres', LIMIT_MS)
    await machine.startInitialReplication()
    const ledger = await Ledger.start(guest)
    guest.start('exec /tools/run pgbench -h /tmp/data -U postgres -n -c 2 -T 3600 postgres')
    await ledger.advance(20)

    const beforeRest = ledger.committed
    const atRest = await machine.replicate({ applicationConsistent: true })
    expect(atRest.quiesce?.error ?? null).toBeNull()
    expect(atRest.pointKind).toBe('application-consistent')
    await ledger.advance(20)

    const beforeRun = ledger.committed
    expect((await machine.replicate()).pointKind).toBe('crash-consistent')
    const replica = await openReplica({ directory: place.path('replica') })
    ends.push(() => replica.close())
    const test = await replica.startTestFailover({ point: 'LatestApplicationConsistent' })
    const failover = await replica.startFailover({ fencePrimary: true })
    await ledger.advance(20)
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'REPLICA_FAILED_OVER' })
    await ledger.advance(20)
    expect(server.output).not.toContain('PANIC')
    await guest.kill()

    const served = [
      (await test.exportNbd({ listen: `unix:${place.path('rest.sock')}` })).uri('data.raw'),
      (await failover.exportNbd({ listen: `unix:${place.path('run.sock')}` })).uri('data.raw'),
    ]
    const tools = { file: place.path('tools.raw'), isReadOnly: true }
    const second = await bootGuest({
      drives: [...served.map((uri) => ({ nbd: uri })), tools],
      memoryMiB: 384,
    })
    ends.push(() => second.kill())
    await mountTools(second, 'vdc')
    const rested = await startServer(second, 'vda', 'rest')
    const ran = await startServer(second, 'vdb', 'run')
    const points = [
      { before: beforeRest, content: await contentOf(second, 'rest') },
      { before: beforeRun, content: await contentOf(second, 'run') },
    ]
    for (const { before, content } of points) {
      expect(content.newest).toBeGreaterThanOrEqual(before)
      expect(content.count).toBe(content.newest)
      expect(new Set(content.sums).size).toBe(1)
    }
    expect(ran.output).toContain('redo done')
    // A record or two of the server's own may follow its checkpoint.
    expect(redoneBytes(rested)).toBeLessThan(4096)
    expect(redoneBytes(ran)).toBeGreaterThan(redoneBytes(rested))
  }, 600_000)
})
