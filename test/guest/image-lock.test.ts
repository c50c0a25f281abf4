/**
 * A disk is tracked by us or opened by a QEMU, never both: a guest that wrote past the log would make the replica differ in
 * silence. QEMU keeps others out by locks of its own on the image, and the tracked disk takes the same ones.
 */

import { spawnSync } from 'node:child_process'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { skip } from '../scenarios/tools.js'
import { MIB, Workplace } from '../scenarios/workplace.js'
import { bootGuest, missingForGuest } from './guest.js'

const missing = missingForGuest()

function qemuImg(...options: string[]): { exitCode: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync('qemu-img', options, { encoding: 'utf8' })
  return { exitCode: status, output: stdout + stderr }
}

describe('the image locks', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest: image locks', missing))
    return
  }

  let place: Workplace
  let ends: (() => Promise<void>)[]
  beforeEach(() => {
    place = new Workplace()
    ends = []
  })
  afterEach(async () => {
    for (const end of ends.toReversed()) await end()
    place.remove()
  })

  it('keep every QEMU from a tracked disk until it is closed', async () => {
    const disk = place.makeDisk('os.raw', 4 * MIB)
    const engine = await place.open()
    ends.push(() => engine.close())
    await place.enable(engine, [disk])
    await expect(bootGuest({ drives: [{ file: disk }] })).rejects.toThrow(/Failed to (get|lock)/)
    await expect(bootGuest({ drives: [{ file: disk, isReadOnly: true }] })).rejects.toThrow(
      /Failed to (get|lock)/,
    )
    const convert = ['convert', '-f', 'raw', '-O', 'raw', disk, place.path('copy.raw')]
    expect(qemuImg(...convert)).toEqual({ exitCode: 1, output: expect.stringContaining('lock') })
    expect(qemuImg('resize', '-f', 'raw', disk, '8M')).toEqual({
      exitCode: 1,
      output: expect.stringContaining('lock'),
    })
    await engine.close()
    expect(qemuImg(...convert)).toEqual({ exitCode: 0, output: '' })
  })

  it('keep us from the disk of a running guest, and no longer once it was killed', async () => {
    const disk = place.makeDisk('os.raw', 4 * MIB)
    const engine = await place.open()
    ends.push(() => engine.close())
    const guest = await bootGuest({ drives: [{ file: disk }] })
    ends.push(() => guest.kill())
    await expect(place.enable(engine, [disk])).rejects.toMatchObject({
      code: 'DISK_IN_USE',
      details: { path: disk },
    })
    await guest.kill()
    const machine = await place.enable(engine, [disk])
    expect(machine.disks).toHaveLength(1)
  })
})
