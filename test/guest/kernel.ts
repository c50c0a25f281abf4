/**
 * The Linux kernel that the guest boots: the one of Debian's package linux-image-cloud-amd64, as it is installed here.
 *
 * Which modules a module needs stands in the module itself (`depends=` in its section .modinfo), so neither depmod nor its
 * files have to be there.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

export interface Kernel {
  readonly imagePath: string
  readonly modulesDirectory: string
}

/** The newest cloud kernel that has its modules beside it. */
export function findKernel(): Kernel | undefined {
  const pattern = /^vmlinuz-(.*-cloud-amd64)$/
  const found = existsSync('/boot')
    ? readdirSync('/boot').flatMap((name) => pattern.exec(name)?.[1] ?? [])
    : []
  const version = found
    .sort((one, other) => one.localeCompare(other, 'en', { numeric: true }))
    .findLast((candidate) => existsSync(join('/lib/modules', candidate, 'kernel')))
  if (version === undefined) return undefined
  return { imagePath: join('/boot', `vmlinuz-${version}`), modulesDirectory: join('/lib/modules', version) }
}

/** Paths of the modules and of all they need, in the order in which they can be loaded. Built-in ones are left out. */
export function modulesInOrder(kernel: Kernel, names: readonly string[]): string[] {
  const paths = modulePaths(kernel.modulesDirectory)
  const builtIn = readFileSync(join(kernel.modulesDirectory, 'modules.builtin'), 'utf8')
  const ordered = new Set<string>()
  const add = (name: string): void => {
    const path = paths.get(name)
    if (path === undefined && builtIn.split('\n').some((line) => moduleName(line) === name)) return
    if (path === undefined) throw new Error(`the kernel of ${kernel.imagePath} has no module ${name}`)
    dependencies(path).forEach(add)
    ordered.add(path)
  }
  names.forEach(add)
  return [...ordered]
}

function modulePaths(directory: string): Map<string, string> {
  const files = readdirSync(directory, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.ko'),
  )
  return new Map(files.map((name) => [moduleName(name), join(directory, name)]))
}

/** File names have dashes where module names have underscores, but not always. */
function moduleName(path: string): string {
  return basename(path, '.ko').replaceAll('-', '_')
}

function dependencies(path: string): string[] {
  const marker = Buffer.from('\0depends=')
  const bytes = readFileSync(path)
  const start = bytes.indexOf(marker)
  if (start < 0) return []
  const from = start + marker.length
  const list = bytes.toString('latin1', from, bytes.indexOf(0, from))
  return list.split(',').filter(Boolean).map(moduleName)
}
