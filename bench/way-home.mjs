// Commit, reversal and failback of a machine: their time as a function of what was changed, at disks of two sizes that hold
// next to nothing else. The proof by digests reads both sides whole, so it is left out here; it is a verification.
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Engine, failback, openReplica, reverseReplication } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { summary } from './measure.mjs'

const MIB = 2 ** 20
const PIECE_BYTES = 64 * 1024
const random = new SeededRandom(1)
const piece = random.bytes(PIECE_BYTES)

/** One round trip; returns milliseconds of its parts. */
async function trip(folder, sizeBytes, changedBytes) {
  mkdirSync(folder)
  const path = join(folder, 'os.raw')
  const file = openSync(path, 'w')
  for (let at = 0; at < 64 * MIB; at += PIECE_BYTES) writeSync(file, piece, 0, PIECE_BYTES, at)
  ftruncateSync(file, sizeBytes)
  closeSync(file)
  const at = (name) => join(folder, name)
  const home = await Engine.open({ stateDirectory: at('home') })
  const away = await Engine.open({ stateDirectory: at('away') })
  const policy = { replicationFrequencySeconds: 86_400, autoResynchronize: { enabled: false } }
  const replicaAt = { directory: at('replica') }
  const machine = await home.enable({ name: 'web01', disks: [path], replica: replicaAt, policy })
  await machine.startInitialReplication()
  const replica = await openReplica(replicaAt)
  const failover = await replica.startFailover({ fencePrimary: true })
  const [disk] = failover.disks
  const places = Math.floor(sizeBytes / PIECE_BYTES)
  for (let written = 0; written < changedBytes; written += PIECE_BYTES)
    await disk.write(random.below(places) * PIECE_BYTES, piece)
  await disk.flush()
  const commitMs = await timed(() => replica.commitFailover())
  const directory = at('home-store')
  const reverseMs = await timed(() =>
    reverseReplication(replica, { engine: away, former: { engine: home }, directory }),
  )
  const failbackMs = await timed(() => failback({ replica, away, home, directory, verify: false }))
  for (const open of [replica, home, away]) await open.close()
  return { commitMs, reverseMs, failbackMs }
}

async function timed(action) {
  const startedMs = performance.now()
  await action()
  return performance.now() - startedMs
}

/** @param folder - where disks and replicas are made, one after the other */
export async function goingHome({ folder, isQuick, rounds }) {
  const samples = new Map()
  for (let round = 0; round < rounds; round += 1) {
    for (const changedMib of isQuick ? [1] : [16, 256]) {
      for (const gib of isQuick ? [1] : [4, 64]) {
        const place = join(folder, `home-${round}-${changedMib}-${gib}`)
        const times = await trip(place, gib * 1024 * MIB, changedMib * MIB)
        rmSync(place, { recursive: true })
        for (const [part, ms] of Object.entries(times)) {
          const name = `${part.replace('Ms', '')}, ${changedMib} MiB changed of ${gib} GiB`
          samples.set(name, [...(samples.get(name) ?? []), ms])
        }
      }
    }
  }
  const results = [...samples]
    .map(([name, values]) => ({ name, ...summary(values) }))
    .toSorted((left, right) => (left.name < right.name ? -1 : 1))
  const method =
    'A machine is failed over, pieces of 64 KiB are written to random places over there, the failover is committed while its disks are open, replication is reversed, and the machine is brought home ' +
    '(synchronized, finalized without the proof by digests, returned), all in one process on one disk.'
  return {
    title: 'Commit, reversal and failback by changed bytes and size of the disk',
    method,
    unit: 'ms',
    results,
  }
}
