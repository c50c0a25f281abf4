import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { HEADERS, type MessageType, WIRE_TYPES } from './messages.js'

const specification = readFileSync(join(import.meta.dirname, '../../../../docs/spec/wire.md'), 'utf8')

interface SpecifiedType {
  readonly number: number
  readonly header: string
  readonly body: string
}

function specifiedTypes(): Map<string, SpecifiedType> {
  const rows = specification.matchAll(
    /^\| `([a-z-]+)` \| (\d+) \| (?:primary|replica) \| (.*?) \| (.*?) ?\|$/gm,
  )
  return new Map(
    [...rows].map(([, type = '', number, header = '', body = '']) => [
      type,
      { number: Number(number), header, body },
    ]),
  )
}

it('types, numbers and bodies are those of the specification', () => {
  const specified = [...specifiedTypes()].map(([type, { number, body }]) => [type, number, body !== ''])
  const written = Object.entries(WIRE_TYPES).map(([type, { number, body }]) => [
    type,
    number,
    body !== 'none',
  ])
  expect(written).toEqual(specified)
})

it('header fields are those of the specification', () => {
  for (const [type, { header }] of specifiedTypes()) {
    const fields = Object.keys(HEADERS[type as MessageType].shape)
    const named = header.replaceAll(/\[[^\]]*\]|\([^)]*\)/g, '').replace(/error:.*/, 'error')
    expect(
      named.split(',').map((field) => field.trim()),
      type,
    ).toEqual(fields)
  }
})

it('a shipment of an older primary is a crash-consistent cut of the machine alone', () => {
  const begin = { key: 1, kind: 'delta', cutTimeMs: 0, isRebase: false, logs: [] }
  const point = { pointKind: 'crash-consistent', groupPointId: null }
  expect(HEADERS['shipment-begin'].parse(begin)).toMatchObject(point)
  expect(HEADERS['shipment-begin'].safeParse({ ...begin, pointKind: 'tested' }).success).toBe(false)
})

it('no number is given twice', () => {
  const numbers = Object.values(WIRE_TYPES).map(({ number }) => number)
  expect(new Set(numbers).size).toBe(numbers.length)
})

it.each(['../../etc/passwd', '..', 'a/b', 'a\0b', ''])(
  'a name that is no file name is refused: %j',
  (name) => {
    const disk = { diskId: 'd1', name, sizeBytes: 512, sectorSizeBytes: 512 }
    const hello = { key: 1, protocolVersion: 1, relationshipId: 'r1', machine: 'web01', fencingNumber: 1 }
    expect(HEADERS.hello.safeParse({ ...hello, disks: [{ ...disk, name: 'os.raw' }] }).success).toBe(true)
    expect(HEADERS.hello.safeParse({ ...hello, disks: [disk] }).success).toBe(false)
    expect(
      HEADERS.hello.safeParse({ ...hello, disks: [{ ...disk, name: 'os.raw', diskId: name }] }).success,
    ).toBe(false)
  },
)
