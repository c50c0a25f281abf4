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
  /** What was read was written to meanwhile: there is no answer, or a copy of neither the old nor the new content. */
  changed: 5,
  /** A recovery plan waits for somebody. */
  waiting: 6,
  /** Stopped by Ctrl-C or SIGTERM. */
  interrupted: 130,
} as const

export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** The table that every help text ends with. */
export const EXIT_TEXT = `
Exit codes:
  0  done, equal, good        4  failed on the way
  1  different, damaged       5  a disk or log was written to while it was read
  2  bad command line         6  a recovery plan waits for somebody
  3  refused, nothing changed
                            130  interrupted
`

/** Codes after which something may have been changed, or a later try may succeed. */
const ON_THE_WAY = /_(FAILED|FULL|LOST|DIED|BUSY)$|^INTERNAL$|^WORKER_DIED$/

const DAMAGE =
  /^(PLAN_RUN_DAMAGED|DIGEST_MISMATCH)$|^LOG_(CORRUPT|HEADER_CORRUPT|TORN_TAIL|INDEX_MISMATCH|CHAIN_GAP|CHAIN_FORK|NOT_SEALED)$/

/** The exit code that an error code stands for. */
export function exitCodeOf(code: string): ExitCode {
  if (code === 'ABORTED') return EXIT.interrupted
  if (code === 'OPTION_OUT_OF_RANGE') return EXIT.usage
  if (code.endsWith('_CHANGED_WHILE_READ')) return EXIT.changed
  if (DAMAGE.test(code)) return EXIT.different
  return ON_THE_WAY.test(code) ? EXIT.failed : EXIT.refused
}
