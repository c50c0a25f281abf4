/**
 * Commands in a guest, and everything that can go wrong with one: no wait may last for ever, and every error says what was
 * waited for.
 */

import { existsSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { skip } from '../scenarios/tools.js'
import { bootGuest, type Guest, missingForGuest } from './guest.js'

const missing = missingForGuest()

function folders(): string[] {
  const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
  return readdirSync(base).filter((name) => name.startsWith('secondsite-guest-run-'))
}

describe('a command in a guest', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest: commands', missing))
    return
  }

  let guest: Guest
  beforeAll(async () => {
    guest = await bootGuest({ drives: [] })
  })
  afterAll(() => guest.kill())

  it('gives back its output and its exit code', async () => {
    expect(await guest.run('echo one; echo; echo "  two" >&2; printf three')).toBe('one\n\n  two\nthree')
    await expect(guest.run('echo why; exit 3')).rejects.toThrow(/exit code 3 of `echo why; exit 3`.*\nwhy/)
    expect(await guest.start('kill -9 $$').exitCode()).toBe(128 + 9)
    await expect(guest.run('no-such-program')).rejects.toThrow(/exit code 127[^]*not found/)
  })

  it('has no memory of the one before', async () => {
    await guest.run('cd /tmp && export A=1')
    expect(await guest.run('pwd; echo "A is $A"')).toBe('/\nA is ')
  })

  it('writes far more than a buffer, in order and whole', async () => {
    const lines = (await guest.run('seq 20000')).split('\n')
    expect(lines).toHaveLength(20_000)
    expect(lines.findIndex((line, index) => line !== `${index + 1}`)).toBe(-1)
    const long = await guest.run('head -c 10000 /dev/zero | tr "\\0" x')
    expect(long.replaceAll('\n', '')).toBe('x'.repeat(10_000))
  })

  it('runs beside others until it is stopped', async () => {
    const loop = guest.start('i=0; while echo $i; do i=$((i + 1)); usleep 1000; done')
    await loop.line((line) => line === '3')
    expect(await guest.run('echo meanwhile')).toBe('meanwhile')
    await loop.line((line) => line === '30')
    loop.stop()
    expect(await loop.exitCode()).toBe(128 + 15)
    await expect(loop.line((line) => line === 'never')).rejects.toThrow('exit code 143')
  })

  it('is refused as the seventeenth, and the sixteen go on', async () => {
    const waiting = Array.from({ length: 16 }, () => guest.start('echo here; exec sleep 1000'))
    await Promise.all(waiting.map((command) => command.line((line) => line === 'here')))
    await expect(guest.run('true')).rejects.toThrow('too many commands at once')
    waiting.forEach((command) => command.stop())
    expect(await Promise.all(waiting.map((command) => command.exitCode()))).toEqual(Array(16).fill(143))
    await guest.run('true')
  })

  it('that takes too long is named with what it wrote', async () => {
    const command = guest.start('echo started; exec sleep 1000')
    await command.line((line) => line === 'started')
    await expect(command.exitCode(1)).rejects.toThrow(
      /not within 1 ms: the end of `echo started; exec sleep 1000`.*\nstarted/,
    )
    await expect(command.line((line) => line === 'never', 1)).rejects.toThrow('not within 1 ms: a line of')
    command.stop()
    await command.exitCode()
  })

  it('is one line', () => {
    expect(() => guest.start('echo one\necho two')).toThrow(TypeError)
    expect(() => guest.start('x'.repeat(4001))).toThrow(TypeError)
  })
})

describe('a guest that ends', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest: its end', missing))
    return
  }

  it('by a panic fails what was waited for, with the kernel’s words', async () => {
    const guest = await bootGuest({ drives: [] })
    const waiting = guest.start('exec sleep 1000')
    guest.start('echo c > /proc/sysrq-trigger')
    await expect(waiting.exitCode()).rejects.toThrow(
      /QEMU ended[^]*sysrq triggered crash[^]*during `exec sleep/,
    )
    await expect(guest.run('true')).rejects.toThrow('QEMU ended')
    await guest.kill()
    await guest.kill()
    expect(() => process.kill(guest.processId, 0)).toThrow('ESRCH')
  })

  it('before it has booted says what QEMU said, and leaves no files', async () => {
    const before = folders()
    await expect(bootGuest({ drives: [{ file: '/no/such/disk' }] })).rejects.toThrow(
      /QEMU ended before[^]*\/no\/such\/disk/,
    )
    await expect(bootGuest({ drives: [], bootLimitMs: 1 })).rejects.toThrow(
      'not within 1 ms: a guest that takes commands',
    )
    expect(folders().filter((name) => !before.includes(name))).toEqual([])
  })

  it('is refused an address that is none', async () => {
    await expect(bootGuest({ drives: [{ nbd: 'http://localhost/' }] })).rejects.toThrow('not an NBD address')
  })
})
