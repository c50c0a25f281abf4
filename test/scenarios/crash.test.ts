/**
 * The process is ended with SIGKILL just before every step of initial replication, of a cycle, of a resynchronization, of
 * adding a disk, of removing one, and of accepting that one has shrunk.
 * It is then opened again, goes on, and every byte of both disks must equal its replica.
 */

import { spawnSync } from 'node:child_process'
import { copyFileSync, readdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { openReplica, type PolicyInput, type ProtectedMachine } from '@secondsite/engine'
import { describe, expect, it, vi } from 'vitest'
import { MIB, Workplace } from './workplace.js'

const child = fileURLToPath(new URL('crash-child.mjs', import.meta.url))
const seed = 20_261_121

function run(folder: string, job: string, killAt: number) {
  return spawnSync(process.execPath, [child, folder, job, String(killAt), String(seed)], { encoding: 'utf8' })
}

/** Runs a job that must come to its end; returns the steps it passed. */
function runWhole(folder: string, job: string): string[] {
  const result = run(folder, job, 0)
  expect(result.stderr).toBe('')
  return JSON.parse(result.stdout) as string[]
}

/** A folder in which the machine is protected and, when asked for, replicating. */
async function prepared({ isReplicating, policy }: Job): Promise<Workplace> {
  const place = new Workplace(seed)
  place.makeDisk('new.raw', 2 * MIB)
  const disks = [place.makeDisk('os.raw', 2 * MIB, 2 * MIB), place.makeDisk('data.raw', MIB)]
  await using engine = await place.open()
  copyFileSync(place.path('os.raw'), place.path('os.before'))
  const machine = await place.enable(engine, disks, policy)
  if (isReplicating) await machine.startInitialReplication()
  return place
}

/** Brings a machine to Replicating and its replica up to date, whatever state the crash left. */
async function goOn(machine: ProtectedMachine): Promise<void> {
  if (machine.state === 'ReadyForInitialReplication') await machine.startInitialReplication()
  if (machine.state === 'WaitingForStartResynchronize') await machine.resynchronize()
  const deadlineMs = Date.now() + 20_000
  while (machine.state !== 'Replicating') {
    if (Date.now() > deadlineMs)
      throw new Error(`stuck in ${machine.state}: ${JSON.stringify(await machine.measure())}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  await machine.replicate()
}

/** Every step in the slow run; else of each name the last time it comes, when most has been done before it. */
function chosen(steps: readonly string[]): (readonly [number, string])[] {
  const all = [...steps.entries()]
  if (process.env['SECONDSITE_SLOW']) return all
  return all.filter(([index, name]) => steps.lastIndexOf(name) === index)
}

/** Adds the disk unless that was done, and waits until the cuts of the machine hold for it. */
async function addNew(machine: ProtectedMachine, place: Workplace): Promise<void> {
  if (machine.disks.length === 2) await machine.addDisk(place.path('new.raw'))
  await vi.waitFor(
    async () => {
      await machine.replicate()
      const { disks } = await machine.measure()
      expect(disks.map((disk) => disk.copyState)).toEqual(['copied', 'copied', 'copied'])
    },
    { timeout: 50_000 },
  )
}

/** Removes the disk unless that was done; nothing of it stays but the disk itself. */
async function removeData(machine: ProtectedMachine, place: Workplace): Promise<void> {
  if (machine.disks.length === 2) await machine.removeDisk('data.raw')
  const left = readdirSync(place.folder).filter((name) => name.startsWith('data.raw'))
  expect(left).toEqual(['data.raw'])
}

const SHRUNK_BYTES = 1024 * 1024 + 66_048

/** Shrinks the disk unless that was done and accepted; older points keep their size. */
async function shrinkOs(machine: ProtectedMachine, place: Workplace): Promise<void> {
  truncateSync(place.path('os.raw'), SHRUNK_BYTES)
  await machine.acceptShrink({ 'os.raw': SHRUNK_BYTES })
  await goOn(machine)
  expect(statSync(place.path('replica/os.raw.raw')).size).toBe(SHRUNK_BYTES)
  await using replica = await openReplica({ directory: place.path('replica') })
  const [oldest] = await replica.points()
  await using view = await replica.openView({ point: oldest?.number ?? 0 })
  const os = view.disks.find(({ name }) => name === 'os.raw')
  const then = Buffer.from((await os?.read(0, os.sizeBytes)) ?? [])
  expect(then.equals(readFileSync(place.path('os.before')))).toBe(true)
}

const BOTH = ['os.raw', 'data.raw']

interface Job {
  readonly job: string
  readonly isReplicating: boolean
  readonly mayResync: boolean
  readonly policy?: PolicyInput
  readonly disks?: readonly string[]
  readonly finish?: (machine: ProtectedMachine, place: Workplace) => Promise<void>
}

const POINTS = { recoveryPoints: 4, recoveryPointIntervalSeconds: 1 }

const jobs: readonly Job[] = [
  { job: 'initial', isReplicating: false, mayResync: false },
  { job: 'cycle', isReplicating: true, mayResync: false },
  { job: 'resync', isReplicating: true, mayResync: true },
  { job: 'add', isReplicating: true, mayResync: false, disks: [...BOTH, 'new.raw'], finish: addNew },
  { job: 'shrink', isReplicating: true, mayResync: true, policy: POINTS, finish: shrinkOs },
  { job: 'remove', isReplicating: true, mayResync: false, disks: ['os.raw'], finish: removeData },
]

describe.each(jobs)('a process that dies during $job', (given) => {
  const { job, mayResync, disks = BOTH, finish } = given
  it('loses no byte, before whichever step it dies', async () => {
    const rehearsal = await prepared(given)
    const steps = runWhole(rehearsal.folder, job)
    rehearsal.remove()
    expect(steps.length).toBeGreaterThan(5)
    for (const [index, name] of chosen(steps)) {
      const place = await prepared(given)
      const killed = run(place.folder, job, index + 1)
      expect(killed.signal, `${name} (${index + 1})`).toBe('SIGKILL')
      const engine = await place.open({ windowBytes: MIB / 2 })
      const machine = engine.machine('web01')
      if (!mayResync) expect((await machine.measure()).resyncReason, name).toBeNull()
      await finish?.(machine, place)
      await goOn(machine)
      place.expectEqual(disks)
      expect(await machine.verify(), name).toMatchObject({ equal: true })
      await engine.close()
      place.remove()
    }
  }, 600_000)
})
