/**
 * The size of a replica's image: looked at, and changed where somebody has decided that. A block device keeps its own.
 */

import { type FileHandle, open, stat } from 'node:fs/promises'
import { fromSystemError } from '../errors.js'

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
