import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { type PolicyInput, parsePolicy } from './policy.js'

function problemsOf(input: unknown): unknown {
  try {
    parsePolicy(input as PolicyInput)
  } catch (error) {
    if (isSecondsiteError(error, 'OPTION_OUT_OF_RANGE')) return error.details.problems
    throw error
  }
  return expect.unreachable('accepted')
}

describe('parsePolicy', () => {
  it('fills in the defaults of the model', () => {
    expect(parsePolicy()).toEqual({
      replicationFrequencySeconds: 300,
      resyncThresholdPercent: 50,
      thresholdAction: 'coalesce',
      autoResynchronize: { enabled: true, immediately: false, windowStart: '18:30', windowEnd: '06:00' },
      recoveryPoints: 0,
      recoveryPointIntervalSeconds: 3600,
      retention: { hourly: 0, daily: 0, weekly: 0, lockHours: 0 },
      keepEveryWrite: { hours: 0, bytesMax: 0 },
      chunkBytes: 65536,
      digest: 'xxh3-128',
      compression: 'adaptive',
      coalesce: { enabled: true, minimumSavingPercent: 10 },
      flushMode: 'disk',
      monitoringIntervalSeconds: 43200,
      monitoringStart: '09:00',
      rpoThresholdMinutes: 60,
      applicationConsistentSnapshotFrequencyInHours: 0,
      quiesce: null,
      failoverSettings: null,
      testFailoverReminderDays: 180,
    })
  })

  it('keeps what is given, down to a part of a part', () => {
    const policy = parsePolicy({
      replicationFrequencySeconds: 1,
      autoResynchronize: { windowEnd: '05:59', timeZone: 'Europe/Berlin' },
    })
    expect(policy.replicationFrequencySeconds).toBe(1)
    expect(policy.autoResynchronize).toMatchObject({
      enabled: true,
      windowStart: '18:30',
      windowEnd: '05:59',
      timeZone: 'Europe/Berlin',
    })
  })

  it('takes its own output again', () => {
    const policy = parsePolicy({ chunkBytes: 4096, digest: 'blake3' })
    expect(parsePolicy(JSON.parse(JSON.stringify(policy)))).toEqual(policy)
  })

  it.each([4096, 65536, 4194304])('takes chunks of %s bytes', (chunkBytes) => {
    expect(parsePolicy({ chunkBytes }).chunkBytes).toBe(chunkBytes)
  })

  it.each([
    ['replicationFrequencySeconds', 0, 'a whole number of seconds from 1 to 86400'],
    ['replicationFrequencySeconds', 1.5, 'a whole number of seconds from 1 to 86400'],
    ['replicationFrequencySeconds', 'often', 'a whole number of seconds from 1 to 86400'],
    ['resyncThresholdPercent', 0, 'a whole number of percent from 1 to 100'],
    ['resyncThresholdPercent', 101, 'a whole number of percent from 1 to 100'],
    ['chunkBytes', 65535, 'a power of two from 4096 to 4194304 bytes'],
    ['chunkBytes', 2048, 'a power of two from 4096 to 4194304 bytes'],
    ['chunkBytes', 8388608, 'a power of two from 4096 to 4194304 bytes'],
    ['digest', 'md5', 'one of xxh3-128, blake3'],
    ['compression', 'gzip', 'one of adaptive, lz4, zstd, none'],
    ['thresholdAction', 'ignore', 'one of coalesce, strict'],
    ['flushMode', null, 'one of disk, log'],
    ['monitoringIntervalSeconds', 3599, 'a whole number of seconds from 3600 to 604800'],
  ])('refuses %s = %s and says what is allowed', (path, value, range) => {
    expect(problemsOf({ [path]: value })).toEqual([{ path, value, range }])
  })

  it.each(['24:00', '6:00', '06:60', 'noon', ''])('refuses %s as a time of day', (windowStart) => {
    expect(problemsOf({ autoResynchronize: { windowStart } })).toEqual([
      { path: 'autoResynchronize.windowStart', value: windowStart, range: 'a time as HH:MM' },
    ])
  })

  it('refuses a time zone that does not exist', () => {
    expect(problemsOf({ autoResynchronize: { timeZone: 'Mars/Base' } })).toMatchObject([
      { path: 'autoResynchronize.timeZone' },
    ])
  })

  it('refuses a misspelt setting instead of losing it', () => {
    expect(problemsOf({ replicationFrequencySecond: 30 })).toEqual([
      { path: 'replicationFrequencySecond', value: 30, range: 'left out: there is no such setting' },
    ])
  })

  it.each([
    ['a method', { method: 'magic' }, 'quiesce.method', 'one of command, fsfreeze, guest-agent'],
    ['a mount', { method: 'fsfreeze', mounts: ['data'] }, 'quiesce.mounts.0', 'an absolute path'],
    ['no mount', { method: 'fsfreeze', mounts: [] }, 'quiesce.mounts', '1 to 32 absolute paths that differ'],
    ['a socket', { method: 'guest-agent', socketPath: 7 }, 'quiesce.socketPath', 'an absolute path'],
    [
      'a limit',
      { method: 'guest-agent', socketPath: '/run/ga', frozenLimitSeconds: 61 },
      'quiesce.frozenLimitSeconds',
      'a whole number of seconds from 1 to 60',
    ],
    [
      'a command line',
      { method: 'command', freeze: 'sync', thaw: ['/bin/true'] },
      'quiesce.freeze',
      'a list of 1 to 64 words, the first one the absolute path of a program',
    ],
    [
      'a program without its path',
      { method: 'command', freeze: ['/bin/true'], thaw: ['true'] },
      'quiesce.thaw',
      'a list of 1 to 64 words, the first one the absolute path of a program',
    ],
  ])('refuses a hook with %s that is none', (_what, quiesce, path, range) => {
    expect(problemsOf({ quiesce })).toMatchObject([{ path, range }])
  })

  it('refuses application-consistent cuts without a hook', () => {
    const range = 'a hook: application-consistent cuts are asked for'
    expect(problemsOf({ applicationConsistentSnapshotFrequencyInHours: 1 })).toEqual([
      { path: 'quiesce', value: 'undefined', range },
    ])
  })

  it('lists every problem at once, NaN included', () => {
    expect(problemsOf({ resyncThresholdPercent: Number.NaN, chunkBytes: -1 })).toMatchObject([
      { path: 'resyncThresholdPercent', value: 'NaN' },
      { path: 'chunkBytes', value: -1 },
    ])
  })
})
