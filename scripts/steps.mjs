// What the scripts share: running a command and finding out whether its inputs changed since it last succeeded.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))
const stampDirectory = join(root, '.setup')
const generated = new Set(['node_modules', 'dist', 'target', '.git'])

/** Runs a command in the project's root; exits with its status when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options })
  if (result.error) fail(`cannot run ${command}: ${result.error.message}`)
  if (result.status !== 0) fail(`${command} ${args.join(' ')} ended with ${result.status ?? result.signal}`)
  return result
}

export function fail(text) {
  console.error(`\nerror: ${text}`)
  process.exit(1)
}

/** Runs `action` unless the files under `inputs` are those of its last success and every one of `outputs` is there. */
export function whenChanged(name, inputs, outputs, action) {
  const stampPath = join(stampDirectory, name)
  const digest = digestOf(inputs)
  const isCurrent = existsSync(stampPath) && readFileSync(stampPath, 'utf8') === digest
  if (isCurrent && outputs.every((path) => existsSync(join(root, path)))) return
  action()
  mkdirSync(stampDirectory, { recursive: true })
  writeFileSync(stampPath, digest)
}

function digestOf(inputs) {
  const hash = createHash('sha256')
  for (const path of inputs.flatMap((input) => filesUnder(join(root, input))).sort()) {
    hash.update(path).update('\0').update(readFileSync(path)).update('\0')
  }
  return hash.digest('hex')
}

function filesUnder(path) {
  if (!existsSync(path)) return []
  if (!statSync(path).isDirectory()) return [path]
  const names = readdirSync(path).filter((name) => !generated.has(name))
  return names.flatMap((name) => filesUnder(join(path, name)))
}
