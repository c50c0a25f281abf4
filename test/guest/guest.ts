/**
 * A small real Linux under QEMU, for tests that need a guest: its disks are the exports or files under test, its root file
 * system is in its memory (`initramfs.ts`), and the host runs shell commands in it (`channel.ts`).
 *
 * It runs without KVM, so that it runs everywhere, and boots in about 3 s. Nothing in here sleeps: the guest says when it is
 * ready, commands say when they end, and QEMU's exit is the end of the guest. A guest ends with its host.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { GuestChannel, type GuestCommand, GuestError, within } from './channel.js'
import { type GuestDrive, driveArguments } from './drives.js'
import { buildInitramfs } from './initramfs.js'
import { findKernel, type Kernel } from './kernel.js'

export { GuestCommand, GuestError } from './channel.js'
export type { GuestDrive } from './drives.js'
export { missingForGuest } from './initramfs.js'

const QEMU = 'qemu-system-x86_64'
const KERNEL_OPTIONS = 'console=ttyS0 quiet panic=-1 nokaslr mitigations=off'

export interface GuestOptions {
  /** The first is /dev/vda in the guest, the second /dev/vdb, and so on. */
  readonly drives: readonly GuestDrive[]
  /** Default 192. */
  readonly memoryMiB?: number
  /** How long until it takes commands; default 60 000. A busy machine takes far longer than the usual 3 s. */
  readonly bootLimitMs?: number
}

/** Boots a guest; resolves when it takes commands. */
export async function bootGuest(options: GuestOptions): Promise<Guest> {
  const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-guest-'))
  const server = createServer().listen(join(folder, 'control'))
  await once(server, 'listening')
  const guest = new Guest(folder, startQemu(folder, options))
  try {
    await within(guest.connect(server), options.bootLimitMs ?? 60_000, () => 'a guest that takes commands')
  } catch (reason) {
    const text = guest.log()
    await guest.kill()
    throw new GuestError(`${reason instanceof Error ? reason.message : 'no boot'}\n${text}`, {
      cause: reason,
    })
  } finally {
    server.close()
  }
  return guest
}

function startQemu(folder: string, options: GuestOptions): ChildProcess {
  const kernel = findKernel()
  if (kernel === undefined) throw new GuestError('no kernel for a guest; ask missingForGuest() first')
  const machine = machineArguments(folder, kernel, options.memoryMiB ?? 192)
  const messages = openSync(join(folder, 'qemu.log'), 'w')
  const all = [...machine, ...options.drives.flatMap(driveArguments)]
  return spawn(QEMU, all, { stdio: ['ignore', messages, messages] })
}

function machineArguments(folder: string, kernel: Kernel, memoryMiB: number): string[] {
  return [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-machine', 'q35,usb=off,vmport=off', '-accel', 'tcg,thread=multi', '-m', `${memoryMiB}`],
    ...['-kernel', kernel.imagePath, '-initrd', buildInitramfs(kernel, folder), '-append', KERNEL_OPTIONS],
    ...['-serial', `file:${join(folder, 'console')}`, '-device', 'virtio-serial-pci'],
    ...['-chardev', `socket,id=control,path=${join(folder, 'control')}`],
    ...['-device', 'virtserialport,chardev=control'],
  ]
}

/** A booted guest. Always end it, by {@link Guest.shutdown} or {@link Guest.kill}. */
export class Guest {
  readonly #exit: Promise<void>
  #channel: GuestChannel | undefined
  #isEnding = false

  /** @internal */
  constructor(
    private readonly folder: string,
    private readonly process: ChildProcess,
  ) {
    this.#exit = new Promise((resolve) => process.once('exit', () => resolve()))
    process.once('error', () => undefined)
  }

  /** Process id of QEMU. */
  get processId(): number {
    if (this.process.pid === undefined) throw new GuestError(`${QEMU} did not start`)
    return this.process.pid
  }

  /** Starts a shell command and does not wait for it. */
  start(text: string): GuestCommand {
    if (this.#channel === undefined) throw new GuestError('the guest has not booted')
    return this.#channel.start(text)
  }

  /** Runs a shell command; returns what it wrote. Any exit code but 0 is a {@link GuestError} with the output. */
  async run(text: string, limitMs = 60_000): Promise<string> {
    const command = this.start(text)
    const code = await command.exitCode(limitMs)
    if (code !== 0) throw new GuestError(`exit code ${code} of ${command.describe()}\n${this.log()}`)
    return command.output
  }

  /** Unmounts everything and switches the guest off, as its user would. */
  async shutdown(limitMs = 60_000): Promise<void> {
    this.#isEnding = true
    await this.run(
      'cd / && { ! grep -q " /mnt" /proc/mounts || umount $(awk \'$2 ~ "^/mnt" {print $2}\' /proc/mounts); }',
    )
    this.start('poweroff -f')
    await within(this.#exit, limitMs, () => `QEMU's end after a shutdown\n${this.log()}`)
    this.#remove()
  }

  /** Ends QEMU with SIGKILL: the guest loses power, what it had not written is gone. May be called at any time. */
  async kill(): Promise<void> {
    this.#isEnding = true
    if (
      this.process.exitCode === null &&
      this.process.signalCode === null &&
      this.process.pid !== undefined
    ) {
      this.process.kill('SIGKILL')
      await this.#exit
    }
    this.#remove()
  }

  /** The end of what the guest's kernel and QEMU said. */
  log(): string {
    const tail = (name: string): string => {
      const path = join(this.folder, name)
      return existsSync(path) ? readFileSync(path, 'latin1').slice(-4000) : ''
    }
    return `console: ${tail('console')}\nqemu: ${tail('qemu.log')}`
  }

  /** @internal Waits for QEMU to connect to the control socket and for the guest to take commands. */
  async connect(server: ReturnType<typeof createServer>): Promise<void> {
    const early = this.#exit.then(() => {
      throw new GuestError('QEMU ended before its guest took commands')
    })
    early.catch(() => undefined)
    const connected = once(server, 'connection') as Promise<[Socket]>
    const [socket] = await Promise.race([connected, early])
    this.#channel = new GuestChannel(socket)
    void this.#exit.then(() =>
      this.#channel?.end(this.#isEnding ? 'the guest was ended' : `QEMU ended\n${this.log()}`),
    )
    await Promise.race([this.#channel.ready(), early])
  }

  #remove(): void {
    this.#channel?.end('the guest was ended')
    rmSync(this.folder, { recursive: true, force: true })
  }
}
