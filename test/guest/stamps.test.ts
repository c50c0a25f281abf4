/**
 * The check of the write load, on folders of the host: a check that finds nothing wrong proves nothing until it has been
 * seen to find each thing that can be.
 */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { skip } from '../scenarios/tools.js'
import { compileProgram, missingForGuest } from './initramfs.js'

const LEDGER_COUNT = 256
const SLOT_COUNT = 64
const BLOCK_BYTES = 4096
const SECTOR_BYTES = 512
const missing = missingForGuest()
const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

let original: string
let newest: number
let folder: string
const program = (): string => join(original, 'stamps')
const ledger = (): string => join(folder, 'ledger')
const fileOf = (kind: 'slot' | 'loose', stamp: number): string =>
  join(folder, `${kind}-${String(stamp % SLOT_COUNT).padStart(2, '0')}`)

/** Lets a load go on until it has written `last`; returns the stamp it ended with. */
async function write(last: number): Promise<number> {
  const load = spawn(program(), ['write', join(original, 'load')], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exit = once(load, 'exit')
  let synced = 0
  for await (const line of createInterface(load.stdout)) {
    synced = Number(/^synced (\d+)$/.exec(line)?.[1])
    if (synced === last) load.kill('SIGTERM')
  }
  expect(await exit).toEqual([0, null])
  return synced
}

function check(atLeast = 0): { exitCode: number | null; output: string } {
  const { status, stdout } = spawnSync(program(), ['check', folder, `${atLeast}`], { encoding: 'utf8' })
  return { exitCode: status, output: stdout }
}

function expectRight(): void {
  expect(check(newest)).toEqual({ exitCode: 0, output: expect.stringContaining(`newest ${newest}\n`) })
}

function expectWrong(reason: string): void {
  expect(check()).toEqual({ exitCode: 1, output: expect.stringContaining(reason) })
}

function overwrite(file: string, offset: number, bytes: Buffer): void {
  const opened = openSync(file, 'r+')
  writeSync(opened, bytes, 0, bytes.length, offset)
  closeSync(opened)
}

function blockOffset(stamp: number): number {
  return (stamp % LEDGER_COUNT) * BLOCK_BYTES
}

describe('the check of the write load', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest: the check of its write load', missing))
    return
  }

  beforeAll(async () => {
    original = mkdtempSync(join(base, 'secondsite-stamps-'))
    writeFileSync(program(), compileProgram('stamps'), { mode: 0o755 })
    newest = await write(LEDGER_COUNT + 50)
  })
  beforeEach(() => {
    folder = mkdtempSync(join(base, 'secondsite-stamps-'))
    cpSync(join(original, 'load'), folder, { recursive: true })
  })
  afterEach(() => rmSync(folder, { recursive: true, force: true }))
  afterAll(() => rmSync(original, { recursive: true, force: true }))

  it('finds nothing wrong with what was left alone', () => expectRight())

  it('finds a lost stamp', () => {
    expect(check(newest + 1)).toEqual({
      exitCode: 1,
      output: expect.stringContaining(`lost: ${newest + 1} was synced, the newest is ${newest}`),
    })
  })

  it('lets the block pass that was being written', () => {
    overwrite(ledger(), blockOffset(newest + 1), Buffer.alloc(SECTOR_BYTES, 7))
    expectRight()
  })

  it('finds a torn block among the finished ones', () => {
    overwrite(ledger(), blockOffset(newest - 3) + 2 * SECTOR_BYTES, Buffer.alloc(SECTOR_BYTES, 7))
    expectWrong(`in the place of ${newest - 3} is 0`)
  })

  it('finds a block with the content of another', () => {
    const blocks = readFileSync(ledger())
    const from = blockOffset(newest - 9)
    overwrite(ledger(), blockOffset(newest - 8), blocks.subarray(from, from + BLOCK_BYTES))
    expectWrong(`in the place of ${newest - 8} is ${newest - 9}`)
  })

  it('finds a renamed file with the content of another', () => {
    copyFileSync(fileOf('slot', newest - 6), fileOf('slot', newest - 5))
    expectWrong(`in the place of ${newest - 5} is ${newest - 6}`)
  })

  it('finds a renamed file that is empty, cut off or damaged', () => {
    truncateSync(fileOf('slot', newest - 1), 0)
    expectWrong('of 0 bytes holds no stamp')
    truncateSync(fileOf('slot', newest - 2), 9)
    expectWrong('of 9 bytes holds no stamp')
    overwrite(fileOf('slot', newest - 3), 9, Buffer.from('damage'))
    expectWrong(`in the place of ${newest - 3} is 0`)
  })

  it('finds files that are behind the ledger', () => {
    rmSync(fileOf('slot', newest))
    rmSync(fileOf('slot', newest - 1))
    expectWrong(`the slots end at ${newest - 2}, the ledger at ${newest}`)
  })

  it('lets an unsynced file be absent, empty, short or with blocks missing', () => {
    rmSync(fileOf('loose', 1))
    truncateSync(fileOf('loose', 2), 0)
    truncateSync(fileOf('loose', 3), 9)
    overwrite(fileOf('loose', 4), 0, Buffer.alloc(BLOCK_BYTES))
    expectRight()
  })

  it('finds an unsynced file with bytes of something else', () => {
    overwrite(fileOf('loose', 5), 9, Buffer.from('damage'))
    expectWrong('loose-05 says stamp')
  })

  it('finds an unsynced file that is longer than it was written', () => {
    truncateSync(fileOf('loose', 6), 32_768)
    expectWrong('loose-06 says stamp')
  })
})
