/**
 * A folder with disks, a state directory and a replica, and the checks that every scenario needs.
 */

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Engine, type EngineOptions, type PolicyInput, type ProtectedMachine } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { expect } from 'vitest'

export const KIB = 1024
export const MIB = 1024 * KIB

/** A file system in memory where there is one: these tests end processes, not machines, so a sync need not be slow. */
const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

export class Workplace {
  readonly folder = mkdtempSync(join(base, 'secondsite-scenario-'))
  readonly random: SeededRandom

  constructor(seed = 1) {
    this.random = new SeededRandom(seed)
  }

  path(name: string): string {
    return join(this.folder, name)
  }

  /** An image of which the first part has random bytes and the rest is a hole. */
  makeDisk(name: string, sizeBytes: number, filledBytes = sizeBytes / 2): string {
    const path = this.path(name)
    mkdirSync(this.folder, { recursive: true })
    writeFileSync(path, this.random.bytes(filledBytes))
    truncateSync(path, sizeBytes)
    return path
  }

  open(options: Partial<EngineOptions> = {}): Promise<Engine> {
    return Engine.open({
      stateDirectory: this.path('state'),
      frameBytes: 64 * KIB,
      batchBytes: MIB,
      ...options,
    })
  }

  /** A due resynchronization waits for the test, not for the hours of the night. */
  enable(engine: Engine, disks: readonly string[], given: PolicyInput = {}): Promise<ProtectedMachine> {
    const replica = { directory: this.path('replica') }
    const policy = { autoResynchronize: { enabled: false }, ...given }
    return engine.enable({ name: 'web01', disks: [...disks], replica, policy })
  }

  /** Writes random bytes at random places; returns how many bytes. */
  async scribble(machine: ProtectedMachine, writeCount: number, maxBytes = 64 * KIB): Promise<number> {
    let written = 0
    for (let count = 0; count < writeCount; count += 1) {
      const disk = machine.disks[this.random.below(machine.disks.length)]
      if (disk === undefined) throw new Error('a machine without disks')
      const lengthBytes = 512 * (1 + this.random.below(maxBytes / 512))
      const offset = 512 * this.random.below((disk.sizeBytes - lengthBytes) / 512)
      await disk.write(offset, this.random.bytes(lengthBytes))
      written += lengthBytes
    }
    return written
  }

  /** Every byte of every disk equals its replica's. */
  expectEqual(names: readonly string[]): void {
    for (const name of names) {
      const source = readFileSync(this.path(name))
      const replica = readFileSync(join(this.path('replica'), `${name}.raw`))
      expect(source.equals(replica), `${name} equals its replica`).toBe(true)
    }
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}
