/**
 * Sizes and times: constants, the check of what comes from outside, and texts for people.
 *
 * Inside, sizes are bytes and times are integer milliseconds or nanoseconds; KiB and minutes exist only in texts.
 */

/** Bytes of 1 KiB. */
export const KIB = 1024
/** Bytes of 1 MiB. */
export const MIB = 1024 * KIB
/** Bytes of 1 GiB. */
export const GIB = 1024 * MIB
/** Every offset and length of a disk is a multiple of this. */
export const SECTOR_BYTES = 512
/** Nanoseconds of a millisecond. */
export const NS_PER_MS = 1_000_000n
/** Milliseconds of a second. */
export const SECOND_MS = 1000
/** Milliseconds of a minute. */
export const MINUTE_MS = 60 * SECOND_MS
/** Milliseconds of an hour. */
export const HOUR_MS = 60 * MINUTE_MS
/** Milliseconds of a day. */
export const DAY_MS = 24 * HOUR_MS

/**
 * Returns `value` when it is a whole number of bytes from 0 to 2^53 - 1.
 *
 * The native border turns 1.5 into 1 and NaN into 0 without a word, so every number is checked before it gets there.
 * @throws TypeError naming the argument
 */
export function checkOffset(value: number, name = 'offset'): number {
  if (Number.isSafeInteger(value) && value >= 0) return value
  throw new TypeError(`${name} must be a whole number from 0 to 2^53-1, not ${value}`)
}

/** As {@link checkOffset}, and a multiple of 512. */
export function checkSectorOffset(value: number, name = 'offset'): number {
  if (checkOffset(value, name) % SECTOR_BYTES === 0) return value
  throw new TypeError(`${name} must be a multiple of ${SECTOR_BYTES}, not ${value}`)
}

/** The number that `value` is. @throws RangeError when a number cannot hold it exactly */
export function toSafeNumber(value: bigint, name = 'value'): number {
  const number = Number(value)
  if (Number.isSafeInteger(number)) return number
  throw new RangeError(`${name} ${value} does not fit a number exactly`)
}

const BYTE_NAMES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** `1536` as `1.5 KiB`, for people. */
export function formatBytes(bytes: number): string {
  let value = bytes
  let power = 0
  // Rounding must not print "1024.0 KiB": what would round up to 1024 is the next unit's 1.0.
  while (Math.abs(value) >= (power === 0 ? KIB : KIB - 0.05) && power < BYTE_NAMES.length - 1) {
    value /= KIB
    power += 1
  }
  return `${power === 0 ? value : value.toFixed(1)} ${BYTE_NAMES[power]}`
}

/** `5400000` as `1 h 30 min`, for people: the two largest units that matter. */
export function formatDuration(durationMs: number): string {
  if (durationMs < SECOND_MS) return `${Math.round(durationMs)} ms`
  if (durationMs < MINUTE_MS - 50) return `${(durationMs / SECOND_MS).toFixed(1)} s`
  if (durationMs < HOUR_MS - SECOND_MS / 2)
    return twoUnits(Math.round(durationMs / SECOND_MS), 60, 'min', 's')
  if (durationMs < DAY_MS - MINUTE_MS / 2) return twoUnits(Math.round(durationMs / MINUTE_MS), 60, 'h', 'min')
  return twoUnits(Math.round(durationMs / HOUR_MS), 24, 'd', 'h')
}

function twoUnits(smallCount: number, smallPerBig: number, big: string, small: string): string {
  const rest = smallCount % smallPerBig
  const head = `${Math.floor(smallCount / smallPerBig)} ${big}`
  return rest === 0 ? head : `${head} ${rest} ${small}`
}
