/**
 * What is kept of a side whose writes are given up: its logs lead from what both sides had to what it had.
 */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { applyLogs } from '@secondsite/engine'
import { type Content, expectBytes } from './recovery-model-oracle.js'

/** @param logs - of all disks, in their order for each of them @param folder - for copies of the disks, which is made */
export async function expectKept(
  logs: readonly string[],
  before: Content,
  after: Content,
  folder: string,
): Promise<void> {
  mkdirSync(folder)
  for (const [name, bytes] of before) {
    const copy = join(folder, name)
    writeFileSync(copy, bytes)
    const own = logs.filter((path) => basename(path).startsWith(`${name}.`))
    // Content of what no log knows is part of no chain.
    const chain = own.filter((path) => !isContent(path))
    if (chain.length > 0) await applyLogs(chain, copy)
    for (const path of own.filter(isContent)) await applyLogs([path], copy)
    expectBytes(readFileSync(copy), after.get(name), `what is kept of ${name}`)
  }
}

function isContent(path: string): boolean {
  return basename(path).includes('.content-')
}
