// Everything that needs no run of the program: formats, lints, layers.
import { join } from 'node:path'
import { root, run } from './steps.mjs'

const bin = (name) => join(root, 'node_modules/.bin', name)

run('cargo', ['fmt', '--all', '--check'])
run('cargo', ['clippy', '--workspace', '--all-targets', '--quiet', '--', '-D', 'warnings'])
run(bin('biome'), ['format', '.'])
run(bin('oxlint'), ['--deny-warnings'])
