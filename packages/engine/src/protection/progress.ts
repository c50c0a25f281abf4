/**
 * Progress of long work: what is done, how fast, how long it will still take.
 */

import type { Clock } from '../clock.js'

/** What is going on. */
export type ProgressPhase = 'initial-replication' | 'delta' | 'resynchronize' | 'verify'

/** One step of progress. Bytes never go back and never pass their total. */
export interface Progress {
  readonly phase: ProgressPhase
  readonly machine: string
  /** The disk at work; absent when it is all of them. */
  readonly disk?: string
  /** Bytes of the source that have been looked at. */
  readonly comparedBytes: number
  /** Bytes sent to the replica, as encoded. */
  readonly transferredBytes: number
  /** Bytes of the phase that are done, of `totalBytes`. */
  readonly doneBytes: number
  readonly totalBytes: number
  /** Bytes of the phase done a second, over the whole phase so far. */
  readonly bytesPerSecond: number
  /** Milliseconds that the rest takes at this rate; null before there is one. */
  readonly etaMs: number | null
}

export type ProgressListener = (progress: Progress) => void

/** Counts up and tells a listener. */
export class ProgressMeter {
  readonly #listener: ProgressListener | undefined
  readonly #clock: Clock
  readonly #startedMs: number
  readonly #phase: ProgressPhase
  readonly #machine: string
  #totalBytes: number
  #doneBytes = 0
  #comparedBytes = 0
  #transferredBytes = 0
  #resumedBytes = 0

  constructor(
    phase: ProgressPhase,
    machine: string,
    totalBytes: number,
    clock: Clock,
    listener?: ProgressListener,
  ) {
    this.#phase = phase
    this.#machine = machine
    this.#totalBytes = totalBytes
    this.#clock = clock
    this.#listener = listener
    this.#startedMs = clock.nowMs()
  }

  get transferredBytes(): number {
    return this.#transferredBytes
  }

  get comparedBytes(): number {
    return this.#comparedBytes
  }

  /** Bytes that an earlier run has done: part of what is done, not of the rate. */
  resumed(bytes: number): void {
    this.#resumedBytes += bytes
    this.done(bytes)
  }

  /** Bytes of the phase that are done now. */
  done(bytes: number, disk?: string): void {
    this.#doneBytes = Math.min(this.#totalBytes, this.#doneBytes + bytes)
    this.#tell(disk)
  }

  compared(bytes: number): void {
    this.#comparedBytes += bytes
  }

  transferred(bytes: number): void {
    this.#transferredBytes += bytes
  }

  /** More turned out to be owed than was known at the start. */
  owed(bytes: number): void {
    this.#totalBytes += bytes
  }

  #tell(disk: string | undefined): void {
    if (this.#listener === undefined) return
    const elapsedMs = this.#clock.nowMs() - this.#startedMs
    const freshBytes = this.#doneBytes - this.#resumedBytes
    const bytesPerSecond = elapsedMs > 0 ? (freshBytes / elapsedMs) * 1000 : 0
    const leftBytes = this.#totalBytes - this.#doneBytes
    this.#listener({
      phase: this.#phase,
      machine: this.#machine,
      ...(disk === undefined ? {} : { disk }),
      comparedBytes: this.#comparedBytes,
      transferredBytes: this.#transferredBytes,
      doneBytes: this.#doneBytes,
      totalBytes: this.#totalBytes,
      bytesPerSecond,
      etaMs: bytesPerSecond > 0 ? (leftBytes / bytesPerSecond) * 1000 : null,
    })
  }
}
