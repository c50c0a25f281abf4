// Everything that needs no run of the program: formats, lints, layers.
import { join } from 'node:path'
import { root, run } from './steps.mjs'

const bin = (name) => join(root, 'node_modules/.bin', name)

run('cargo', ['fmt', '--all', '--check'])
// The glue has no tests, and compiled for tests its exports would count as unused.
const glue = 'secondsite-node'
run('cargo', ['clippy', '--workspace', '--exclude', glue, '--all-targets', '--quiet', '--', '-D', 'warnings'])
run('cargo', ['clippy', '--package', glue, '--quiet', '--', '-D', 'warnings'])
run(bin('biome'), ['format', '.'])
run(bin('oxlint'), ['--deny-warnings'])
