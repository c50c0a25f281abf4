/**
 * The image files of a replica: made once, grown and shrunk with their disks, and never made anew by themselves.
 *
 * An image that is gone, or shorter than it was left, has been deleted or cut by somebody: what it held is lost, and so is what
 * every point shows of that disk, since undo leads back from the image. It is made anew only when the primary, which
 * owes a whole resynchronization of the disk from then on, says so. Until a cut is applied over it, nothing shows it.
 */

import { imageLost, imageSizeBytes, type LostImage, lostImages } from '../store/image-file.js'
import { RecoveryStore } from '../store/recovery-store.js'
import type { ReplicaDisk } from '../store/replica-schema.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { undoFolder } from '../store/undo-folder.js'
import type { Clock } from '../clock.js'
import type { ReplicaWork } from './replica-work.js'

export class ImageKeeper {
  readonly #store: ReplicaStore
  readonly #recovery: RecoveryStore
  readonly #work: ReplicaWork

  constructor(store: ReplicaStore, work: ReplicaWork, clock: Clock) {
    this.#store = store
    this.#recovery = new RecoveryStore(store, clock)
    this.#work = work
  }

  /**
   * Makes the images of `disks` what their rows say: there, and as large.
   * @param mayRecreate - whether the image of a disk may be made anew where it is lost
   * @throws {REPLICA_IMAGE_LOST} naming every image that is; nothing has been changed
   */
  async ensure(disks: readonly ReplicaDisk[], mayRecreate: (diskId: string) => boolean): Promise<void> {
    const lost = await lostImages(disks)
    const refused = lost.filter(({ disk }) => !mayRecreate(disk.diskId))
    if (refused.length > 0) throw imageLost(this.#store.directory, refused)
    for (const { disk } of lost) await this.#forget(disk)
    for (const disk of disks) await this.#bringToSize(disk, lost)
  }

  /** What led back from the image leads nowhere: rows first, as ever, then files. */
  async #forget(disk: ReplicaDisk): Promise<void> {
    await this.#work.step('image.before-forgetting')
    await this.#recovery.forgetDisk(disk.diskId)
    await this.#work.dropPointsBefore(undoFolder(this.#store.directory, disk), Number.MAX_SAFE_INTEGER)
    await this.#work.step('image.before-creating')
  }

  /** The image of a disk comes into being once; one that is there without the store's word is somebody else's. */
  async #bringToSize(disk: ReplicaDisk, lost: readonly LostImage[]): Promise<void> {
    const { diskId, imagePath, sizeBytes } = disk
    const isCreated = disk.isImageCreated === 1
    const isGone = lost.some((one) => one.disk === disk) && (await imageSizeBytes(imagePath)) === null
    if (!isCreated || isGone) await this.#work.createImage(imagePath, sizeBytes)
    else await this.#work.growImage(imagePath, sizeBytes)
    if (!isCreated || disk.imageSizeBytes < sizeBytes || isGone)
      await this.#store.markImage(diskId, sizeBytes)
  }
}
