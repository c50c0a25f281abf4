/** Exit codes of the command; documented in its help and in the README. */
export const EXIT = {
  /** Done; of a comparison: equal, of a check: good. */
  ok: 0,
  /** The answer is "they differ" or "it is damaged". */
  different: 1,
  /** The command line makes no sense. */
  usage: 2,
  /** What was asked for was refused before anything was changed. */
  refused: 3,
  /** It failed on the way. */
  failed: 4,
  /** Stopped by Ctrl-C; the same command goes on. */
  interrupted: 130,
} as const

export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** Codes after which something may have been changed, or a later try may succeed. */
const ON_THE_WAY = /_(FAILED|FULL|LOST|DIED|BUSY)$|^INTERNAL$|^WORKER_DIED$/

/** The exit code that an error code stands for. */
export function exitCodeOf(code: string): ExitCode {
  if (code === 'ABORTED') return EXIT.interrupted
  if (code === 'OPTION_OUT_OF_RANGE') return EXIT.usage
  if (/^LOG_(CORRUPT|HEADER_CORRUPT|TORN_TAIL|INDEX_MISMATCH|CHAIN_GAP|CHAIN_FORK|NOT_SEALED)$/.test(code))
    return EXIT.different
  return ON_THE_WAY.test(code) ? EXIT.failed : EXIT.refused
}
