/**
 * The line for QEMU that `secondsite protect` prints, taken as it stands: a QEMU started with it has the disk, and waits
 * while the command is killed and started again.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { start } from './cli-command.js'
import { missingTool, skip } from './tools.js'
import { MIB, Workplace } from './workplace.js'

const missing = missingTool('qemu-system-x86_64')
const readme = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8')
const WITHOUT_GUEST = ['-nodefaults', '-no-user-config', '-display', 'none', '-S', '-monitor', 'stdio']
const POLL = { timeout: 60_000 }

let place: Workplace
let children: ChildProcess[]

beforeEach(() => {
  place = new Workplace()
  children = []
})

afterEach(async () => {
  for (const child of children) await kill(child)
  place.remove()
})

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}

/** Protects the disk; returns the process and the value of -drive that it prints. */
async function protect(disk: string): Promise<{ child: ChildProcess; drive: string }> {
  const places = ['--replica', place.path('replica'), '--state', place.path('state')]
  const child = start('protect', disk, ...places, '--nbd', `unix:${place.path('nbd.sock')}`)
  children.push(child)
  for await (const line of createInterface({ input: child.stdout as Readable })) {
    const drive = /^ +-drive (.*)$/.exec(line)?.[1]
    if (drive !== undefined) return { child, drive }
  }
  throw new Error(`protect ended without its line (${child.exitCode})`)
}

/** A QEMU whose monitor takes commands; all it says is in `said`. */
function monitor(drive: string): { say: (command: string) => void; said: () => string } {
  const qemu = spawn('qemu-system-x86_64', [...WITHOUT_GUEST, '-drive', drive], {
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  children.push(qemu)
  let text = ''
  qemu.stdout.on('data', (piece: Buffer) => (text += piece.toString()))
  qemu.stderr.on('data', (piece: Buffer) => (text += piece.toString()))
  return { say: (command) => (qemu.stdin as Writable).write(`${command}\n`), said: () => text }
}

describe('the line for QEMU', { timeout: 300_000 }, () => {
  if (missing !== undefined) {
    it('cannot be tried here', () => skip('interop: the line for QEMU', missing))
    return
  }

  it('attaches the disk, and the disk outlives a kill of the command', async () => {
    const disk = place.makeDisk('web01.raw', 16 * MIB)
    const first = await protect(disk)
    const qemu = monitor(first.drive)
    qemu.say('qemu-io virtio0 "write -P 7 0 4k"')
    await expect.poll(qemu.said, POLL).toContain('wrote 4096/4096 bytes at offset 0')
    await kill(first.child)
    qemu.say('qemu-io virtio0 "write -P 8 1M 4k"')
    await protect(disk)
    await expect.poll(qemu.said, POLL).toContain('wrote 4096/4096 bytes at offset 1048576')
    expect(qemu.said()).not.toMatch(/failed|error/i)
    const bytes = readFileSync(disk)
    expect([bytes[0], bytes[MIB]]).toEqual([7, 8])
  })

  it('is that of the README', async () => {
    const { drive } = await protect(place.makeDisk('web01.raw', MIB))
    const shown = /`-drive file=\S+?,(format=[^`]*)`/.exec(readme)?.[1]
    expect(drive.slice(drive.indexOf(',format=') + 1)).toBe(shown)
  })
})
