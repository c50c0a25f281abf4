import { describe, expect, it } from 'vitest'
import { withStoredPaths } from './store-paths.js'

describe('a path in a replica store', () => {
  it.each([
    ['in the folder is kept relative to it', '/mnt/second/web01/os.raw', 'os.raw'],
    ['deeper in the folder as well', '/mnt/second/web01/spool/1.hrl', 'spool/1.hrl'],
    ['of a neighbour whose name begins alike is kept whole', '/mnt/second/web012/os.raw', undefined],
    ['that begins with two dots is in the folder', '/mnt/second/web01/..os.raw', '..os.raw'],
    ['of another disk is kept whole', '/srv/home/os.raw', undefined],
    ['of the folder above is kept whole', '/mnt/second', undefined],
  ])('%s', (_, imagePath, stored = imagePath) => {
    expect(withStoredPaths('/mnt/second/web01', { diskId: '1', imagePath })).toEqual({
      diskId: '1',
      imagePath: stored,
    })
  })
})
