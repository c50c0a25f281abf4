#!/usr/bin/env node
// What virsh does with domains, as far as a runner sees it: kept as files in FAKE_VIRSH, each call noted in `calls`. A domain of which
// the name says "deaf" does not shut down when it is asked to.
import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const folder = process.env.FAKE_VIRSH
const [option, uri, quiet, verb, what] = process.argv.slice(2)
appendFileSync(join(folder, 'calls'), `${[uri, verb, what].join(' ')}\n`)
if (option !== '--connect' || quiet !== '--quiet') fail('error: unknown option')

const fileOf = (id) => join(folder, `${id}.xml`)
const path = fileOf(what)

function fail(text) {
  process.stderr.write(`${text}\n`)
  process.exit(1)
}

function create() {
  const xml = readFileSync(what, 'utf8')
  const [, id] = /<uuid>(.*?)<\/uuid>/.exec(xml) ?? []
  if (xml.includes('unfit')) fail('error: unsupported configuration: nothing of the kind')
  if (existsSync(fileOf(id))) fail(`error: Requested operation is not valid: domain is already active`)
  writeFileSync(fileOf(id), xml)
}

if (verb !== 'create' && !existsSync(path)) fail(`error: failed to get domain '${what}'`)
if (verb === 'create') create()
else if (verb === 'domstate') process.stdout.write('running\n')
else if (verb === 'dumpxml') process.stdout.write(readFileSync(path))
else if (verb === 'destroy') rmSync(path)
else if (verb === 'shutdown') {
  if (!/<name>.*deaf.*<\/name>/.test(readFileSync(path, 'utf8'))) rmSync(path)
} else fail(`error: unknown command: '${verb}'`)
