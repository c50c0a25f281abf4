/**
 * The write load of `programs/stamps.c` from the host's side: which stamp the guest was told is durable, and whether a disk
 * still has it.
 */

import type { GuestCommand } from './channel.js'
import type { Guest } from './guest.js'

const pattern = /^synced (\d+)$/

/** A load that runs until it is stopped or its guest ends. */
export class StampLoad {
  constructor(private readonly command: GuestCommand) {}

  /** The newest stamp that was durable, as far as the host knows: from now on no disk may be without it. 0 before the first. */
  get synced(): number {
    const line = this.command.lines.findLast((text) => pattern.test(text))
    return stampIn(line ?? '')
  }

  /** Waits until `count` more stamps are durable. */
  async advance(count: number, limitMs = 60_000): Promise<number> {
    const wanted = this.synced + count
    return stampIn(await this.command.line((line) => stampIn(line) >= wanted, limitMs))
  }

  /** Ends the load; returns the last stamp it wrote. */
  async stop(): Promise<number> {
    this.command.stop()
    const code = await this.command.exitCode()
    if (code !== 0) throw new Error(`the load failed: ${this.command.describe()}`)
    return this.synced
  }
}

function stampIn(line: string): number {
  return Number(pattern.exec(line)?.[1] ?? 0)
}

/** Starts a load in a folder of the guest. */
export function startStamps(guest: Guest, folder: string, firstStamp = 1): StampLoad {
  return new StampLoad(guest.start(`exec stamps write ${folder} ${firstStamp}`))
}

/**
 * Checks what a load has left in a folder and returns the newest stamp. Fails when that cannot have come about by losing
 * what was not synced, or when it is older than `atLeast`.
 */
export async function checkStamps(guest: Guest, folder: string, atLeast = 0): Promise<number> {
  const output = await guest.run(`stamps check ${folder} ${atLeast}`)
  return Number(/^newest (\d+)$/m.exec(output)?.[1])
}
