/**
 * The guest's root file system: BusyBox, the tools of e2fsprogs, the modules of its disks, and two programs of ours that
 * are compiled here (`programs/agent.c`, the first process, and `programs/stamps.c`, the write load). It lives in the
 * guest's memory, so all of the guest's disks are free to be tested. A guest with a network also gets the kernel's NBD client
 * and the program that sets it up.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type ArchiveEntry, archive } from './cpio.js'
import { findKernel, type Kernel, modulesInOrder } from './kernel.js'

const BUSYBOX = '/bin/busybox'
const MKE2FS_CONFIG = '/etc/mke2fs.conf'
/** Programs of the host that the guest gets, each with its libraries, and the names it gets them under. */
const PROGRAMS: readonly (readonly [path: string, ...names: string[]])[] = [
  ['/sbin/mke2fs', 'mke2fs', 'mkfs.ext4'],
  ['/sbin/e2fsck', 'e2fsck'],
  ['/sbin/resize2fs', 'resize2fs'],
]
const NETWORK_PROGRAMS: typeof PROGRAMS = [['/sbin/nbd-client', 'nbd-client']]
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_console', 'ext4', 'qemu_fw_cfg']
const NETWORK_MODULES = ['virtio_net', 'nbd']
const programDirectory = fileURLToPath(new URL('programs', import.meta.url))

/** What is missing here for a guest, with the package that has it; undefined when nothing is. */
export function missingForGuest(): string | undefined {
  if (process.arch !== 'x64') return `the guest is an x86 machine, this one is ${process.arch}`
  if (findKernel() === undefined) return 'no /boot/vmlinuz-*-cloud-amd64 (package linux-image-cloud-amd64)'
  if (!existsSync('/usr/bin/qemu-system-x86_64')) return 'qemu-system-x86_64 is not installed'
  if (!existsSync(BUSYBOX)) return `${BUSYBOX} is not installed (package busybox-static)`
  if (!existsSync('/usr/bin/cc')) return 'cc is not installed (package gcc)'
  const program = [...PROGRAMS.map(([path]) => path), MKE2FS_CONFIG].find((path) => !existsSync(path))
  return program && `${program} is not installed (package e2fsprogs)`
}

/** What is missing here for a guest that comes to an export by its kernel's NBD client; undefined when nothing is. */
export function missingForNetwork(): string | undefined {
  const missing = missingForGuest()
  const client = NETWORK_PROGRAMS.find(([path]) => !existsSync(path))
  return missing ?? (client && `${client[0]} is not installed (package nbd-client)`)
}

const built = new Map<boolean, Buffer>()

/** The archive. The first call in a process takes about half a second, most of it compiling; the others take nothing. */
export function initramfs(kernel: Kernel, hasNetwork: boolean): Buffer {
  const content = built.get(hasNetwork) ?? build(kernel, hasNetwork)
  built.set(hasNetwork, content)
  return content
}

function build(kernel: Kernel, hasNetwork: boolean): Buffer {
  const files = new Map([
    file('init', compileProgram('agent')),
    file('bin/stamps', compileProgram('stamps')),
    ...hostPrograms(hasNetwork ? [...PROGRAMS, ...NETWORK_PROGRAMS] : PROGRAMS),
    ...busybox(),
    ...modules(kernel, hasNetwork ? [...MODULES, ...NETWORK_MODULES] : MODULES),
    file('etc/mke2fs.conf', readFileSync(MKE2FS_CONFIG)),
    file('etc/mtab', Buffer.alloc(0)),
    file('mnt/.keep', Buffer.alloc(0)),
  ])
  return archive([...directoriesOf([...files.keys()]), ...files.values()])
}

type NamedEntry = readonly [path: string, entry: ArchiveEntry]

function file(path: string, content: Buffer): NamedEntry {
  return [path, { kind: 'file', path, content }]
}

function link(path: string, target: string): NamedEntry {
  return [path, { kind: 'link', path, target }]
}

/** Compiles a program of ours so that it runs without libraries, in the guest and here. */
export function compileProgram(name: 'agent' | 'stamps'): Buffer {
  const directory = mkdtempSync(join(tmpdir(), 'secondsite-guest-program-'))
  const output = join(directory, name)
  const source = join(programDirectory, `${name}.c`)
  try {
    execFileSync('cc', ['-static', '-O1', '-Wall', '-Wextra', '-o', output, source])
    return readFileSync(output)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

function hostPrograms(programs: typeof PROGRAMS): NamedEntry[] {
  return programs.flatMap(([path, ...names]) => [
    ...names.map((name) => file(`sbin/${name}`, readFileSync(path))),
    ...librariesOf(path).map((library) => file(library.slice(1), readFileSync(library))),
  ])
}

/** The libraries of a program under the paths at which its loader looks for them, the loader among them. */
export function librariesOf(program: string): string[] {
  const text = execFileSync('ldd', [program], { encoding: 'utf8' })
  return [...text.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1] ?? '')
}

function busybox(): NamedEntry[] {
  const names = execFileSync(BUSYBOX, ['--list'], { encoding: 'utf8' }).split('\n').filter(Boolean)
  const links = names.filter((name) => name !== 'busybox').map((name) => link(`bin/${name}`, 'busybox'))
  return [file('bin/busybox', readFileSync(BUSYBOX)), ...links]
}

function modules(kernel: Kernel, wanted: readonly string[]): NamedEntry[] {
  const paths = modulesInOrder(kernel, wanted)
  const names = paths.map((_, index) => `modules/${index}.ko`)
  const order = names.map((name) => `/${name}\n`).join('')
  return [
    ...paths.map((path, index) => file(names[index] ?? '', readFileSync(path))),
    file('modules/order', Buffer.from(order)),
  ]
}

/** Every directory of these paths, the outer before the inner. */
function directoriesOf(paths: readonly string[]): ArchiveEntry[] {
  const found = new Set(['proc', 'sys', 'dev', 'tmp'])
  for (const path of paths) {
    for (let parent = dirname(path); parent !== '.'; parent = dirname(parent)) found.add(parent)
  }
  return [...found].sort().map((path) => ({ kind: 'directory', path }))
}
