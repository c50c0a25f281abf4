/**
 * The file of a replica's image: looked at, and its size changed where somebody has decided that. A block device keeps its own.
 */

import { type FileHandle, open, stat } from 'node:fs/promises'
import { fromSystemError, SecondsiteError } from '../errors.js'
import type { ReplicaDisk } from './replica-schema.js'

/** Bytes of an image that is a file; null when there is none, undefined of what is no file. */
export async function imageSizeBytes(path: string): Promise<number | null | undefined> {
  try {
    const found = await stat(path)
    return found.isFile() ? found.size : undefined
  } catch (error) {
    const failure = fromSystemError(error, { operation: 'look at', path })
    if (failure.code === 'PATH_NOT_FOUND') return null
    throw failure
  }
}

/** An image that is lost, and how that shows. */
export interface LostImage {
  readonly disk: ReplicaDisk
  readonly reason: string
  /** Bytes that its file has; null when there is none. */
  readonly fileBytes: number | null
}

/**
 * The images of these disks that somebody has deleted or cut short.
 * @param again - reads the rows once more, for whom another process applies beside: that notes that an image becomes smaller
 *   before it does, and may have done both since the rows were read
 */
export async function lostImages(
  disks: readonly ReplicaDisk[],
  again?: () => Promise<readonly ReplicaDisk[]>,
): Promise<LostImage[]> {
  const lost = (await Promise.all(disks.map(lostImage))).filter((one) => one !== undefined)
  if (lost.length === 0 || again === undefined) return lost
  const rows = await again()
  return lost.filter(({ disk, fileBytes }) => {
    const row = rows.find(({ diskId }) => diskId === disk.diskId) ?? disk
    return fileBytes === null || fileBytes < row.imageSizeBytes
  })
}

async function lostImage(disk: ReplicaDisk): Promise<LostImage | undefined> {
  if (disk.isImageCreated === 0) return undefined
  const fileBytes = await imageSizeBytes(disk.imagePath)
  if (fileBytes === null) return { disk, reason: 'the file is gone', fileBytes }
  if (fileBytes === undefined || fileBytes >= disk.imageSizeBytes) return undefined
  return { disk, reason: `the file has ${fileBytes} bytes, and had ${disk.imageSizeBytes}`, fileBytes }
}

/** The error that images are lost. @param lost - at least one */
export function imageLost(directory: string, lost: readonly LostImage[]): SecondsiteError {
  const [first] = lost
  const images = lost.map(({ disk, reason }) => ({ disk: disk.name, path: disk.imagePath, reason }))
  const rest = lost.length > 1 ? `, and ${lost.length - 1} more` : ''
  return new SecondsiteError('REPLICA_IMAGE_LOST', {
    message: `the image ${first?.disk.imagePath} of the replica is lost: ${first?.reason}${rest}`,
    details: {
      path: first?.disk.imagePath ?? directory,
      reason: first?.reason ?? '',
      diskIds: lost.map(({ disk }) => disk.diskId),
      images,
    },
  })
}

/** Makes an image as large as this, durably, if it is smaller. */
export async function growImage(path: string, sizeBytes: number): Promise<void> {
  await resizeImage(path, sizeBytes, 'grow', (bytes) => bytes < sizeBytes)
}

/** Makes an image as small as this, durably, if it is larger. What is cut off must have been saved. */
export async function shrinkImage(path: string, sizeBytes: number): Promise<void> {
  await resizeImage(path, sizeBytes, 'shrink', (bytes) => bytes > sizeBytes)
}

async function resizeImage(
  path: string,
  sizeBytes: number,
  operation: string,
  isNeeded: (bytes: number) => boolean,
): Promise<void> {
  try {
    const image = await open(path, 'r+')
    await setSize(image, sizeBytes, isNeeded).finally(() => image.close())
  } catch (error) {
    throw fromSystemError(error, { operation, path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

async function setSize(
  image: FileHandle,
  sizeBytes: number,
  isNeeded: (bytes: number) => boolean,
): Promise<void> {
  const found = await image.stat()
  if (!found.isFile() || !isNeeded(found.size)) return
  await image.truncate(sizeBytes)
  await image.datasync()
}
