// Writes the golden logs of this folder that imitate a Hyper-V host, from the public text of [MS-HRL] alone: it shares
// no code with crates/hrl, adds bytes one by one and knows nothing of indexes or seals. Run: node make.mjs FOLDER
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

const SECONDS = 539842380 // 2017-02-08T04:13:00Z, the example of [MS-HRL] section 3

function byteSum(bytes, skipFrom, skipTo) {
  let sum = 0n
  for (let i = 0; i < bytes.length; i++) if (i < skipFrom || i >= skipTo) sum += BigInt(bytes[i])
  return Number(~sum & 0xffffffffn)
}

function entry({ offset, length, seconds }) {
  const b = Buffer.alloc(32)
  b.writeBigUInt64LE(BigInt(offset), 0)
  b.writeUInt32LE(length, 12)
  b.writeUInt32LE(seconds, 16)
  b[20] = 1
  b.writeUInt32LE(byteSum(b, 8, 12), 8)
  return b
}

function block(entries, distance, size) {
  const b = Buffer.alloc(size)
  b.writeBigUInt64LE(BigInt(distance), 0)
  b.writeUInt32LE(entries.length, 8)
  b.writeUInt32LE(byteSum(b.subarray(0, 32), 12, 16), 12)
  entries.forEach((e, i) => entry(e).copy(b, 32 * (i + 1)))
  return b
}

function header({ version, id, previousId, diskId, end, size, count, metadataSize, application }) {
  const b = Buffer.alloc(4096)
  b.write('msctlog ', 0, 'latin1')
  b.writeUInt32LE(version, 8)
  b.writeUInt32LE(SECONDS, 12)
  b.write(application, 16, 'latin1')
  b.writeUInt32LE(0x000a0000, 20)
  b.writeBigUInt64LE(BigInt(size), 32)
  b.writeBigUInt64LE(BigInt(end), 44)
  b.writeUInt32LE(metadataSize, 56)
  b.fill(id, 60, 76)
  b.fill(previousId, 76, 92)
  b.writeUInt32LE(SECONDS + 60, 92)
  b.writeBigUInt64LE(BigInt(count), 96)
  if (version === 0x00020000) b.fill(diskId, 110, 126)
  b.writeUInt32LE(byteSum(b, 40, 44), 40)
  return b
}

// Entry n: 16 + n % 25 bytes (any length is allowed), byte i is (7 n + i) mod 256, at 3626340352 + 8192 n of the disk.
const write = (n) => {
  const length = 16 + (n % 25)
  const data = Buffer.from(Array.from({ length }, (_, i) => (7 * n + i) % 256))
  return { offset: 3626340352 + 8192 * n, length, seconds: SECONDS + Math.floor(n / 100), data }
}

function log(count, metadataSize, emptyFirst, fields, trailing) {
  const perBlock = metadataSize / 32 - 1
  const parts = []
  let position = 4096
  let last = null
  const put = (bytes) => { parts.push(bytes); position += bytes.length }
  const close = (entries) => {
    const at = position
    put(block(entries, last === null ? 0 : at - last, metadataSize))
    last = at
  }
  if (emptyFirst) close([])
  let pending = []
  for (let n = 0; n < count; n++) {
    const e = write(n)
    put(e.data)
    pending.push(e)
    if (pending.length === perBlock || n === count - 1) { close(pending); pending = [] }
  }
  const end = position
  if (trailing > 0) put(Buffer.alloc(trailing, 0xaa))
  return Buffer.concat([header({ ...fields, end, size: position, count, metadataSize }), ...parts])
}

const folder = process.argv[2] ?? '.'
const v2 = { version: 0x00020000, id: 0xa1, previousId: 0xa0, diskId: 0xd1, application: 'ct' }
const v1 = { version: 0x00010000, id: 0xb1, previousId: 0, application: 'ct  ' }
writeFileSync(join(folder, 'hyperv-v2.hrl'), log(300, 4096, true, v2, 0))
writeFileSync(join(folder, 'hyperv-v2-empty.hrl'), log(0, 4096, true, v2, 0))
writeFileSync(join(folder, 'hyperv-v1-data-first.hrl'), log(40, 512, false, v1, 1000))
