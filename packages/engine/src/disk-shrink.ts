/**
 * A disk that has become smaller, and may be: somebody has accepted that very size.
 *
 * The replica carries a shrink out with the shipment of a cut, once everything up to that cut is in its image, and by its id
 * only once: no older or repeated message makes an image smaller.
 */
export interface DiskShrink {
  readonly diskId: string
  readonly shrinkId: string
  /** Size that the replica may still have. */
  readonly fromBytes: number
  readonly toBytes: number
}

/** Reads what a row remembers of shrinks; null is none. */
export function parseShrinks(json: string | null): readonly DiskShrink[] {
  return json === null ? [] : (JSON.parse(json) as DiskShrink[])
}

/** The same for a row; none is null. */
export function shrinksText(shrinks: readonly DiskShrink[]): string | null {
  return shrinks.length === 0 ? null : JSON.stringify(shrinks)
}
