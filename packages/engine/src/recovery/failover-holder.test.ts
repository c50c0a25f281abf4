/** Who holds a failover changes while somebody asks for it. */

import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { systemClock } from '../clock.js'
import { systemRandom } from '../random.js'
import type { RecoveryContext } from './context.js'
import { askHolder, FailoverHolder } from './failover-holder.js'

let directory: string

beforeEach(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-holder-'))
})

afterEach(() => fs.rmSync(directory, { recursive: true, force: true }))

const files = (): string[] => fs.readdirSync(join(directory, 'failover-holder'))

function asks(): Promise<boolean> {
  const context = { directory, clock: systemClock, random: systemRandom }
  return askHolder(context as RecoveryContext, { verb: 'leave' })
}

it('a request to a holder that dies is put to the next one', async () => {
  const first = FailoverHolder.take(directory)
  const asked = asks()
  await expect.poll(files).toHaveLength(2)
  first.close()
  const second = FailoverHolder.take(directory)
  expect(files()).toEqual(['lock'])
  second.answerWith(async () => second.close())
  expect(await asked).toBe(false)
})

it('a request waits for a holder that does not answer yet', async () => {
  const holder = FailoverHolder.take(directory)
  const asked = asks()
  await expect.poll(files).toHaveLength(2)
  holder.answerWith(async () => holder.close())
  expect(await asked).toBe(false)
})

it('two requests are carried out one after the other, the second not by a holder that has left', async () => {
  const holder = FailoverHolder.take(directory)
  const all = [asks(), asks()]
  await expect.poll(files).toHaveLength(3)
  let count = 0
  holder.answerWith(async () => {
    count += 1
    await systemClock.sleep(1)
    holder.close()
  })
  expect(await Promise.all(all)).toEqual([false, false])
  expect(count).toBe(1)
})
