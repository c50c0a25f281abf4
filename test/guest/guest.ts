/**
 * A small real Linux under QEMU, for tests that need a guest: its disks are the exports or files under test, its root file
 * system is in its memory (`initramfs.ts`), and the host runs shell commands in it (`channel.ts`).
 *
 * It runs without KVM, so that it runs everywhere, and boots in about 3 s. Nothing in here sleeps: the guest says when it is
 * ready, commands say when they end, and QEMU's exit is the end of the guest. A guest ends with its host.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { GuestChannel, type GuestCommand, GuestError, within } from './channel.js'
import { type GuestDrive, driveArguments } from './drives.js'
import { initramfs } from './initramfs.js'
import { findKernel, type Kernel } from './kernel.js'

export { GuestCommand, GuestError } from './channel.js'
export type { GuestDrive } from './drives.js'
export { missingForGuest, missingForNetwork } from './initramfs.js'

const QEMU = 'qemu-system-x86_64'
/**
 * The processor's random numbers (with the model's `rdrand`) make the guest's ready at once; mke2fs wants some and would wait
 * for seconds. What follows leaves out self-tests and calibrations that an emulated processor is slow at.
 */
const KERNEL_OPTIONS =
  'console=ttyS0 quiet panic=-1 random.trust_cpu=on nokaslr mitigations=off cryptomgr.notests no_timer_check lpj=4000000'

/** What a guest with a network calls the loopback of its host; QEMU forwards nothing else that a test asks for. */
export const HOST_ADDRESS = '10.0.2.2'
/** No boot program for the network card: it would come from a package that nothing else needs. */
const NETWORK = ['-netdev', 'user,id=host', '-device', 'virtio-net-pci,netdev=host,romfile=']

export interface GuestOptions {
  /** The first is /dev/vda in the guest, the second /dev/vdb, and so on. */
  readonly drives: readonly GuestDrive[]
  /** Default 192. */
  readonly memoryMiB?: number
  /** Whether it reaches this host, at {@link HOST_ADDRESS}, and has the kernel's NBD client; default false. */
  readonly hasNetwork?: boolean
  /** Where QEMU listens as the host's end of the guest's channel for qemu-guest-agent; default none. */
  readonly agentSocketPath?: string
  /** How long until it takes commands; default 60 000. A busy machine takes far longer than the usual 3 s. */
  readonly bootLimitMs?: number
}

/**
 * Boots a guest; resolves when it takes commands.
 * @throws {GuestError} with what QEMU and the guest's kernel said, when a drive cannot be opened or the boot fails
 */
export async function bootGuest(options: GuestOptions): Promise<Guest> {
  const drives = options.drives.flatMap(driveArguments)
  const kernel = findKernel()
  if (kernel === undefined) throw new GuestError('no kernel for a guest; ask missingForGuest() first')
  const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-guest-run-'))
  const server = createServer().listen(join(folder, 'control'))
  await once(server, 'listening')
  const machine = [...machineArguments(folder, kernel, options), ...agentArguments(options)]
  const guest = new Guest(folder, startQemu(folder, [...machine, ...drives]))
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

function startQemu(folder: string, options: readonly string[]): ChildProcess {
  const messages = openSync(join(folder, 'qemu.log'), 'w')
  const qemu = spawn(QEMU, options, { stdio: ['ignore', messages, messages] })
  closeSync(messages)
  return qemu
}

function machineArguments(folder: string, kernel: Kernel, options: GuestOptions): string[] {
  const { memoryMiB = 192, hasNetwork = false } = options
  const initramfsPath = join(folder, 'initramfs')
  writeFileSync(initramfsPath, initramfs(kernel, hasNetwork))
  const valued = [
    ['-machine', 'q35,usb=off,vmport=off'],
    ['-accel', 'tcg,thread=multi'],
    ['-cpu', 'qemu64,+rdrand'],
    ['-m', `${memoryMiB}`],
    ['-kernel', kernel.imagePath],
    ['-initrd', initramfsPath],
    ['-append', KERNEL_OPTIONS],
    ['-serial', `file:${join(folder, 'console')}`],
    ['-device', 'virtio-serial-pci'],
    ['-chardev', `socket,id=control,path=${join(folder, 'control')}`],
    ['-device', 'virtserialport,chardev=control'],
    ['-display', 'none'],
  ]
  return ['-nodefaults', '-no-user-config', '-no-reboot', ...valued.flat(), ...(hasNetwork ? NETWORK : [])]
}

/** The second port: the first one is the control channel's. */
function agentArguments({ agentSocketPath: path }: GuestOptions): string[] {
  if (path === undefined) return []
  const channel = `socket,id=agent,path=${path},server=on,wait=off`
  return ['-chardev', channel, '-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0']
}

/** A booted guest. Always end it, by {@link Guest.shutdown} or {@link Guest.kill}. */
export class Guest {
  readonly #exit: Promise<void>
  #channel: GuestChannel | undefined
  /** Resolves when QEMU has ended and everybody who waited for its guest knows. */
  #ended: Promise<void>
  #isEnding = false

  /** @internal */
  constructor(
    private readonly folder: string,
    private readonly process: ChildProcess,
  ) {
    this.#exit = new Promise((resolve) => {
      process.once('exit', () => resolve())
      process.once('error', () => resolve())
    })
    this.#ended = this.#exit
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

  /** Unmounts the file systems and switches the guest off; fails while a command still uses one of them. */
  async shutdown(limitMs = 60_000): Promise<void> {
    this.#isEnding = true
    await this.run('umount -a -t ext4')
    this.start('poweroff -f')
    await within(this.#ended, limitMs, () => `QEMU's end after a shutdown\n${this.log()}`)
    this.#remove()
  }

  /** Ends QEMU with SIGKILL: the guest loses power, what it had not written is gone. May be called at any time. */
  async kill(): Promise<void> {
    this.#isEnding = true
    const hasEnded = this.process.exitCode !== null || this.process.signalCode !== null
    if (!hasEnded && this.process.pid !== undefined) this.process.kill('SIGKILL')
    await this.#ended
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
    const channel = new GuestChannel(socket)
    this.#channel = channel
    this.#ended = this.#exit.then(() => this.#endChannel(channel))
    await Promise.race([channel.ready(), early])
  }

  /** The reason is told to whoever waits; the lines that came before QEMU's end are theirs first. */
  async #endChannel(channel: GuestChannel): Promise<void> {
    await channel.drained()
    channel.end(this.#isEnding ? 'the guest was ended' : `QEMU ended\n${this.log()}`)
  }

  #remove(): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}
