/**
 * PostgreSQL for a guest: Debian's server and the QEMU guest agent on a disk of tools, a database cluster on another.
 *
 * Both disks are ext4 file systems that `mke2fs -d` makes of folders, so nothing is mounted here and no server runs here.
 * In the guest the tools are under /tools with the paths that they have in Debian: PostgreSQL finds its files relative to
 * its program. The cluster belongs to a user of its own there, as the server refuses to run as root.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { librariesOf } from './initramfs.js'

const VERSIONS = '/usr/lib/postgresql'
const AGENT = '/usr/sbin/qemu-ga'
const PROGRAMS = ['postgres', 'psql', 'pgbench', 'pg_controldata']
const MIB = 1 << 20

/** The newest version of PostgreSQL that is installed here. */
function version(): string | undefined {
  return existsSync(VERSIONS) ? readdirSync(VERSIONS).sort().at(-1) : undefined
}

/** What is missing here for a guest with PostgreSQL, with the package that has it; undefined when nothing is. */
export function missingForPostgres(): string | undefined {
  const found = version()
  const binaries = found === undefined ? [] : PROGRAMS.map((name) => join(VERSIONS, found, 'bin', name))
  if (binaries.length === 0 || !binaries.every((path) => existsSync(path)))
    return 'PostgreSQL is not installed (package postgresql)'
  if (!existsSync(AGENT)) return `${AGENT} is not installed (package qemu-guest-agent)`
  return process.getuid?.() === 0 ? undefined : 'files of another user can only be made by root'
}

/** Makes the disk of tools. @param files - further files, by their path in the guest below /tools */
export function makeToolsDisk(path: string, files: Readonly<Record<string, string>>): void {
  const root = `${path}.d`
  const programs = [...PROGRAMS.map((name) => join(VERSIONS, version() ?? '', 'bin', name)), AGENT]
  for (const program of programs) copy(program, join(root, program))
  for (const library of new Set(programs.flatMap(librariesOf)))
    copy(library, join(root, 'lib', basename(library)))
  const share = `/usr/share/postgresql/${version()}`
  copy(share, join(root, share))
  // The server's own extension language; the templates were made with it.
  const modules = join(VERSIONS, version() ?? '', 'lib')
  copy(join(modules, 'plpgsql.so'), join(root, modules, 'plpgsql.so'))
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true })
    writeFileSync(join(root, name), content, { mode: 0o755 })
  }
  makeFileSystem(path, root, 192 * MIB)
}

/** Makes a disk with a new cluster in its folder `pg`. @returns the id of the user that it belongs to */
export function makeClusterDisk(path: string, settings: Readonly<Record<string, string>>): number {
  // Elsewhere: folders of tests are closed to other users.
  const root = mkdtempSync(join(tmpdir(), 'secondsite-cluster-'))
  const cluster = join(root, 'pg')
  const userId = Number(execFileSync('id', ['-u', 'postgres'], { encoding: 'utf8' }))
  execFileSync('chown', ['postgres', root])
  const initdb = join(VERSIONS, version() ?? '', 'bin', 'initdb')
  const how = [
    '--no-sync',
    '--auth=trust',
    '--username=postgres',
    '--locale=C',
    '--encoding=UTF8',
    '--wal-segsize=4',
  ]
  const made = spawnSync(
    'setpriv',
    ['--reuid', 'postgres', '--clear-groups', initdb, ...how, '-D', cluster],
    {
      cwd: '/',
      // The guest has no files of time zones; this one the server knows by itself.
      env: { ...process.env, TZ: 'GMT' },
      encoding: 'utf8',
    },
  )
  if (made.status !== 0) throw new Error(`initdb: ${made.stdout}${made.stderr}`)
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value}'\n`)
  writeFileSync(join(cluster, 'postgresql.auto.conf'), lines.join(''))
  makeFileSystem(path, root, 160 * MIB)
  return userId
}

function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true })
  cpSync(from, to, { recursive: true, dereference: true })
}

function makeFileSystem(path: string, root: string, sizeBytes: number): void {
  writeFileSync(path, '')
  truncateSync(path, sizeBytes)
  const options = ['-q', '-F', '-t', 'ext4', '-E', 'lazy_itable_init=0,lazy_journal_init=0', '-d', root]
  execFileSync('mke2fs', [...options, path], { stdio: ['ignore', 'ignore', 'inherit'] })
  rmSync(root, { recursive: true })
  if (statSync(path).size !== sizeBytes) throw new Error(`${path} is not as large as it was made`)
}
