import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { FreezeMarks } from './freeze-marks.js'
import { type QuiesceSettings, quiesceSchema } from './settings.js'
import type { WhileFrozen } from './while-frozen.js'

let folder: string
let marks: FreezeMarks
const names = (): string[] => fs.readdirSync(join(folder, 'frozen'))

function shell(text: string): string[] {
  return ['/bin/sh', '-c', `cd '${folder}' && ${text}`]
}

function hook(thaw: string): QuiesceSettings {
  return quiesceSchema.parse({ method: 'command', freeze: shell('true'), thaw: shell(thaw) })
}

function outcome(isThawed: boolean): WhileFrozen<number> {
  return { result: 7, report: { isConsistent: isThawed, frozenMs: 1, isThawed, error: null } }
}

beforeEach(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'secondsite-marks-'))
  marks = new FreezeMarks(join(folder, 'frozen'))
})

afterEach(() => {
  fs.rmSync(folder, { recursive: true })
})

it('a mark is there during the freeze, for nobody else to read, and gone after the thaw', async () => {
  const action = async (): Promise<WhileFrozen<number>> => {
    expect(names()).toEqual(['m1'])
    expect(fs.statSync(join(folder, 'frozen/m1')).mode & 0o777).toBe(0o600)
    return outcome(true)
  }
  expect(await marks.during('m1', hook('true'), action)).toMatchObject({ result: 7 })
  expect(names()).toEqual([])
})

it('a mark stays while something stays frozen, and the next opening thaws that', async () => {
  await marks.during('m1', hook('touch thawed'), async () => outcome(false))
  expect(names()).toEqual(['m1'])
  expect(await marks.thawLeft()).toEqual([{ id: 'm1', method: 'command', error: null }])
  expect(fs.existsSync(join(folder, 'thawed'))).toBe(true)
  expect([names(), await marks.thawLeft()]).toEqual([[], []])
})

it('a failure of the action leaves no mark', async () => {
  const failing = marks.during('m1', hook('true'), () => Promise.reject(new Error('no cut')))
  await expect(failing).rejects.toThrow('no cut')
  expect(names()).toEqual([])
})

it('a thaw that fails keeps its mark and hinders no other one', async () => {
  await marks.during('m1', hook('exit 1'), async () => outcome(false))
  await marks.during('m2', hook('touch thawed'), async () => outcome(false))
  const left = await marks.thawLeft()
  const codes = left.map(({ id, error }) => [id, error?.code ?? null])
  expect(codes.sort()).toEqual([
    ['m1', 'QUIESCE_THAW_FAILED'],
    ['m2', null],
  ])
  expect(names()).toEqual(['m1'])
}, 30_000)

it('a folder that cannot be made, and a mark that is cut short, cost nothing', async () => {
  fs.writeFileSync(join(folder, 'frozen'), 'a file')
  expect(await marks.during('m1', hook('true'), async () => outcome(true))).toMatchObject({ result: 7 })
  expect(await marks.thawLeft()).toEqual([])
  fs.rmSync(join(folder, 'frozen'))
  fs.mkdirSync(join(folder, 'frozen'))
  fs.writeFileSync(join(folder, 'frozen/m1'), '{"method":"comm')
  expect(await marks.thawLeft()).toEqual([])
})
