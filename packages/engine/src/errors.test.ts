import fs from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ERROR_TABLE, type ErrorRow, RETURN_CODE } from './error-table.js'
import {
  abortedError,
  asSecondsiteError,
  fromPlainError,
  fromSystemError,
  SecondsiteError,
  throwIfAborted,
  toPlainError,
} from './errors.js'

const root = join(import.meta.dirname, '../../..')
const rows = Object.entries(ERROR_TABLE) as [string, ErrorRow][]

function sources(folder: string, keeps: RegExp): string[] {
  const names = fs.readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
  const wanted = names.filter(
    (name) => keeps.test(name) && !/node_modules|(^|\/)dist\/|\.test\.ts$|error-table\.ts$/.test(name),
  )
  return wanted.map((name) => fs.readFileSync(join(root, folder, name), 'utf8'))
}

/** Rows that stand ahead of the code that will use them. */
const PLANNED = ['NOT_IMPLEMENTED', 'REPLICA_INVALID_STATE', 'REPLICA_IN_USE', 'WORKER_DIED']

/** Codes that the Rust rooms return from `fn code` and its like: `=> "CODE"`, `failure("CODE"`. */
function nativeCodes(): Set<string> {
  // Reasons of a resynchronization are no errors; they stand in tracked/state.rs alone.
  const text = sources('crates', /src\/(?!tracked\/state).*\.rs$/).join('\n')
  return new Set(
    [...text.matchAll(/(?:=>|failure\(|&str =)\s*"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"/g)].map(
      (match) => match[1] ?? '',
    ),
  )
}

function errorsMarkdown(): string {
  const lines = rows.map(
    ([code, row]) => `| \`${code}\` | ${row.class} | ${row.returnCode} | ${row.meaning} | ${row.hint} |`,
  )
  return [
    '# Error codes',
    '',
    'Every error of the library and of the command has a `code` that never changes its meaning; messages may change. Errors',
    'carry `details` (path, offset, disk, machine, reason), a `hint`, the class and a return code.',
    '',
    '*recoverable*: the engine tries again by itself after 1, 2, 4, 8 and 10 minutes, then every 30 minutes; the state is',
    'kept. *non-recoverable*: replication stops (state `Error`, health Critical) until somebody has acted. The return code is',
    'the number that the WMI replication service gives for the same.',
    '',
    'A mistake in a call that no environment can cause is a `TypeError` and has no code.',
    '',
    '| Code | Class | Return code | Meaning | What to do |',
    '| --- | --- | --- | --- | --- |',
    ...lines,
    '',
  ].join('\n')
}

describe('the error table', () => {
  it('is in alphabetical order, with whole sentences and a number of the model', () => {
    expect(rows.map(([code]) => code)).toEqual(rows.map(([code]) => code).sort())
    for (const [code, row] of rows) {
      expect(row.meaning, code).toMatch(/^[A-Z].*\.$/)
      expect(row.hint, code).toMatch(/^[A-Z].*\.$/)
      expect(Object.values(RETURN_CODE), code).toContain(row.returnCode)
      expect(row.returnCode, code).toBeGreaterThanOrEqual(32768)
    }
  })

  it('has every code of the native core', () => {
    const native = nativeCodes()
    expect(native).toContain('LOG_CORRUPT')
    expect([...native].filter((code) => !Object.hasOwn(ERROR_TABLE, code))).toEqual([])
  })

  it('has no code that nothing uses or plans to use', () => {
    const text = [...sources('crates', /src\/.*\.rs$/), ...sources('packages', /src\/.*\.ts$/)].join('\n')
    const unused = rows.map(([code]) => code).filter((code) => !new RegExp(`['"]${code}['"]`).test(text))
    expect(unused.filter((code) => !PLANNED.includes(code))).toEqual([])
  })

  it('is docs/errors.md (vitest -u renders it anew)', async () => {
    await expect(errorsMarkdown()).toMatchFileSnapshot(join(root, 'docs/errors.md'))
  })
})

describe('SecondsiteError', () => {
  const error = new SecondsiteError('STATE_DISK_FULL', {
    message: 'no space',
    details: { path: 'state.db', offset: 4096 },
  })

  it('has its class, hint and number from the table', () => {
    expect(error).toMatchObject({
      name: 'SecondsiteError',
      code: 'STATE_DISK_FULL',
      retryable: 'recoverable',
      returnCode: 32768,
    })
    expect(error.hint).toContain('Free space')
  })

  it('survives JSON, as worker, addon and wire send it', () => {
    const back = fromPlainError(JSON.parse(JSON.stringify(toPlainError(error))))
    expect(back).toBeInstanceOf(SecondsiteError)
    expect(toPlainError(back)).toEqual({
      code: 'STATE_DISK_FULL',
      message: 'no space',
      details: { path: 'state.db', offset: 4096 },
    })
  })

  it.each(['FROM_THE_FUTURE', 'toString', '__proto__', ''])('keeps an unknown code %j readable', (code) => {
    const back = fromPlainError({ code, message: 'm', details: { path: 'p' } })
    expect(back).toMatchObject({ code: 'INTERNAL', message: 'm', details: { path: 'p', originalCode: code } })
  })

  it('wraps what others throw, with the cause', () => {
    const cause = new RangeError('odd')
    expect(asSecondsiteError(cause)).toMatchObject({ code: 'INTERNAL', message: 'odd', cause })
    expect(asSecondsiteError('text')).toMatchObject({ code: 'INTERNAL', message: 'text' })
    expect(asSecondsiteError(AbortSignal.abort().reason)).toMatchObject({ code: 'ABORTED' })
    expect(asSecondsiteError(error)).toBe(error)
  })
})

describe('system errors', () => {
  it.each([
    ['ENOENT', 'PATH_NOT_FOUND'],
    ['EACCES', 'ACCESS_DENIED'],
    ['EROFS', 'ACCESS_DENIED'],
    ['ENOSPC', 'REPLICA_DISK_FULL'],
    ['EDQUOT', 'REPLICA_DISK_FULL'],
    ['EIO', 'IO_FAILED'],
  ])('%s becomes %s with operation and path', (errno, code) => {
    const thrown = Object.assign(new Error('x'), { code: errno })
    const call = { operation: 'write', path: 'a.raw', fullCode: 'REPLICA_DISK_FULL' } as const
    expect(fromSystemError(thrown, call)).toMatchObject({
      code,
      details: { operation: 'write', path: 'a.raw', reason: errno },
      cause: thrown,
    })
  })

  it('leaves alone what is no system error', () => {
    expect(fromSystemError(new Error('x'), { operation: 'write', path: 'a' })).toMatchObject({
      code: 'INTERNAL',
      message: 'x',
    })
  })
})

describe('aborts', () => {
  it('carry the reason, and a coded reason as it is', () => {
    const fenced = new SecondsiteError('FENCED', { message: 'overtaken' })
    expect(abortedError('why')).toMatchObject({ code: 'ABORTED', cause: 'why' })
    expect(() => throwIfAborted(AbortSignal.abort(fenced))).toThrow(fenced)
    expect(() => throwIfAborted(new AbortController().signal)).not.toThrow()
  })
})
