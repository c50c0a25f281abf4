/**
 * Ids of the cuts that the machines of a consistency group share. The first half of each is that of the group's own id, so
 * that replicas, which know of groups nothing but these ids, can tell whose cuts they are even where they have none in common.
 */

/** Characters of the half that all cuts of a group share: 8-4-4 digits of a UUID. */
const GROUP_PART_LENGTH = 18

/** The id of a new cut. @param uuid - a fresh one */
export function groupPointIdOf(groupId: string, uuid: string): string {
  return groupId.slice(0, GROUP_PART_LENGTH) + uuid.slice(GROUP_PART_LENGTH)
}

/** What the ids of all cuts of one group have in common. */
export function groupOfPoint(groupPointId: string): string {
  return groupPointId.slice(0, GROUP_PART_LENGTH)
}
