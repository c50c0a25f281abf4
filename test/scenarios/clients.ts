/**
 * Programs of others that come to an export of this process. They run beside it, since it serves them while they run.
 */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { skip } from './tools.js'

/** Debian's own python3, the one that its package python3-libnbd is for. */
export const PYTHON = '/usr/bin/python3'

/** Whether Python scripts can use libnbd; if not, the skip of `test` is recorded. */
export function hasLibnbdPython(test: string): boolean {
  if (spawnSync(PYTHON, ['-c', 'import nbd'], { stdio: 'ignore' }).status === 0) return true
  skip(test, `${PYTHON} has no module nbd (package python3-libnbd)`)
  return false
}

/**
 * Runs a client while this process serves it; returns all that it wrote.
 * @throws {Error} with that, when it ends with anything but 0
 */
export async function client(command: string, ...args: readonly string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const output: Buffer[] = []
  child.stdout.on('data', (piece: Buffer) => output.push(piece))
  child.stderr.on('data', (piece: Buffer) => output.push(piece))
  const [code] = await once(child, 'close')
  const text = Buffer.concat(output).toString()
  if (code !== 0) throw new Error(`${command} ended with ${code}: ${text}`)
  return text
}

/** Runs commands of qemu-io on an export, each in its own argument. */
export function qemuIo(uri: string, ...commands: readonly string[]): Promise<string> {
  return client('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri)
}
