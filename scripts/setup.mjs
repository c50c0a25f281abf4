// Makes a clone ready to run: packages, native addon, TypeScript. What is up to date is left alone.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root, run, whenChanged } from './steps.mjs'

const needed = [
  ['cargo', ['--version'], 'Rust 1.95 or newer (rustup, stable)'],
  ['c++', ['--version'], 'a C++ toolchain (Debian: build-essential)'],
  ['python3', ['--version'], 'python3 (needed by node-gyp to build two addons)'],
]

function checkTools() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 20))
    fail(`Node 20.20 or newer is needed, this is ${process.version}`)
  for (const [command, args, text] of needed) {
    if (spawnSync(command, args, { stdio: 'ignore' }).status !== 0)
      fail(`${command} was not found: install ${text}`)
  }
}

// Not in package.json's packageManager: pnpm 12 then refuses a frozen lockfile in a fresh clone.
const packageManager = 'pnpm@12.21.0'

function installPackages() {
  run('npx', ['--yes', packageManager, 'install', '--frozen-lockfile'])
}

function buildNative() {
  run('npm', ['run', '--silent', 'build'], { cwd: join(root, 'packages/native') })
}

function nativeOutputs() {
  const folder = join(root, 'packages/native')
  const addon = readdirSync(folder).find((name) => name.endsWith('.node')) ?? 'secondsite.node'
  return [`packages/native/${addon}`, 'packages/native/index.js']
}

const manifests = ['pnpm-lock.yaml', 'pnpm-workspace.yaml', 'package.json']
const packageManifests = [
  'packages/engine/package.json',
  'packages/cli/package.json',
  'packages/native/package.json',
]

checkTools()
whenChanged('packages', [...manifests, ...packageManifests], ['node_modules/.modules.yaml'], installPackages)
whenChanged('native', ['crates', 'Cargo.toml', 'Cargo.lock'], nativeOutputs(), buildNative)
run(join(root, 'node_modules/.bin/tsc'), ['-b'])
