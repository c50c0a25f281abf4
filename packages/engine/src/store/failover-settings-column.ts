/**
 * The failover settings that a replica holds, as two texts of JSON: what the primary says, and what was set here.
 *
 * What was set here counts. What the primary says is kept beside it, so that taking one's own back leaves what the primary
 * said last, whether there still is one or not. What is in the texts is known to recovery alone.
 */

/** Both, each null where there is none. */
export interface HeldFailoverSettings {
  readonly primary: string | null
  readonly replica: string | null
}

/** Reads the column; an empty one holds none. */
export function heldFailoverSettings(column: string | null): HeldFailoverSettings {
  if (column === null) return { primary: null, replica: null }
  return JSON.parse(column) as HeldFailoverSettings
}

/** The column with one of the two replaced. */
export function withFailoverSettings(
  column: string | null,
  changed: Partial<HeldFailoverSettings>,
): string | null {
  const held = { ...heldFailoverSettings(column), ...changed }
  return held.primary === null && held.replica === null ? null : JSON.stringify(held)
}
