/**
 * A machine that replicates, files that fail on command, and what every bad day must end with: a coded error with a hint,
 * a guest that never noticed, and after the repair a replica that equals the disk.
 */

import {
  isSecondsiteError,
  type Engine,
  type ProtectedMachine,
  type SecondsiteError,
} from '@secondsite/engine'
import { FaultyFileSystem } from '@secondsite/engine/testing'
import { expect } from 'vitest'
import { KIB, MIB, Workplace } from './workplace.js'

/** The error that a promise must end with. */
export async function refusal(promise: Promise<unknown>): Promise<SecondsiteError> {
  const error = await promise.then(
    (value) => new Error(`it was not refused: ${JSON.stringify(value)}`),
    (thrown: unknown) => thrown,
  )
  if (!isSecondsiteError(error)) throw error
  expect(error.hint).not.toBe('')
  return error
}

/** The code a promise ends with; `none` when it succeeds. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error === undefined) return 'none'
  if (!isSecondsiteError(error)) throw error
  return error.code
}

export class BadDay {
  readonly place = new Workplace()
  readonly files = new FaultyFileSystem()
  engine: Engine | undefined

  /** A machine with one disk that is half full, replicated. */
  async replicating(sizeBytes = 2 * MIB): Promise<ProtectedMachine> {
    const machine = await this.enabled(sizeBytes)
    await machine.startInitialReplication()
    return machine
  }

  async enabled(sizeBytes = 2 * MIB): Promise<ProtectedMachine> {
    this.engine = await this.place.open()
    const policy = { replicationFrequencySeconds: 86_400, autoResynchronize: { enabled: false } }
    return this.place.enable(this.engine, [this.place.makeDisk('os.raw', sizeBytes)], policy)
  }

  /** Closes the engine, or lets it die, and opens it again. */
  async reopen(how: 'close' | 'abandon' = 'close'): Promise<ProtectedMachine> {
    await this.engine?.[how]()
    this.engine = undefined
    this.engine = await this.place.open()
    return this.engine.machine('web01')
  }

  /** Writes as a guest does; throws when the guest would see an error. */
  async guestWrites(machine: ProtectedMachine, writeCount = 10): Promise<void> {
    await this.place.scribble(machine, writeCount, 16 * KIB)
    await machine.disks[0]?.flush()
  }

  /** Whatever the state waits for is done, until both sides are equal. Returns the verbs that were needed. */
  async repaired(machine: ProtectedMachine): Promise<string[]> {
    const verbs: string[] = []
    for (let round = 0; round < 5; round += 1) {
      const verb = await this.#step(machine)
      verbs.push(verb)
      if (verb === 'replicate') {
        this.place.expectEqual(['os.raw'])
        expect(await machine.verify()).toMatchObject({ equal: true })
        return verbs
      }
    }
    throw new Error(`not repaired by ${verbs.join(', ')}; the state is ${machine.state}`)
  }

  async end(): Promise<void> {
    this.files.heal()
    await this.engine?.close()
    this.place.remove()
  }

  /** A cycle that finds out that a resynchronization is owed is refused in its middle. */
  async #replicate(machine: ProtectedMachine): Promise<string> {
    const code = await codeOf(machine.replicate())
    if (code === 'none') return 'replicate'
    expect(code).toBe('INVALID_STATE')
    expect(machine.state).toBe('WaitingForStartResynchronize')
    return 'notice'
  }

  async #step(machine: ProtectedMachine): Promise<string> {
    switch (machine.state) {
      case 'ReadyForInitialReplication':
        await machine.startInitialReplication()
        return 'startInitialReplication'
      case 'InitialReplicationInProgress':
        await machine.cancelInitialReplication()
        return 'cancelInitialReplication'
      case 'WaitingForStartResynchronize':
      case 'ResynchronizeSuspended':
        await machine.resynchronize()
        return 'resynchronize'
      case 'Resynchronizing':
        await machine.cancelResynchronize()
        return 'cancelResynchronize'
      case 'Suspended':
      case 'Error':
        await machine.resume()
        return 'resume'
      default:
        return this.#replicate(machine)
    }
  }
}
