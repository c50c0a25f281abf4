//! A sparse disk in memory: blocks of 4 KiB in an ordered map, a missing block is a hole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use crate::device::{BlockDevice, Extent, ExtentKind, check_range};
use crate::error::Result;

const BLOCK_BYTES: u64 = 4096;

type Block = Box<[u8; BLOCK_BYTES as usize]>;

/// A disk in memory; its size costs nothing, its data does.
#[derive(Debug)]
pub struct MemoryDevice {
    path: PathBuf,
    size_bytes: u64,
    sector_size_bytes: u32,
    blocks: RwLock<BTreeMap<u64, Block>>,
}

impl Clone for MemoryDevice {
    /// A disk of its own with the same bytes.
    fn clone(&self) -> Self {
        let blocks = RwLock::new(self.blocks.read().clone());
        Self { path: self.path.clone(), blocks, ..*self }
    }
}

impl MemoryDevice {
    /// A disk of holes with 512-byte sectors.
    ///
    /// # Panics
    /// When the size is 0 or not a multiple of 512.
    pub fn new(name: &str, size_bytes: u64) -> Self {
        Self::with_sectors(name, size_bytes, 512)
    }

    /// A disk of holes whose medium writes sectors of 512 or 4096 bytes whole.
    ///
    /// # Panics
    /// When the sector size is another, or the size is 0 or no multiple of it.
    pub fn with_sectors(name: &str, size_bytes: u64, sector_size_bytes: u32) -> Self {
        assert!(matches!(sector_size_bytes, 512 | 4096), "sectors of {sector_size_bytes} bytes");
        let is_whole = size_bytes > 0 && size_bytes.is_multiple_of(u64::from(sector_size_bytes));
        assert!(is_whole, "a disk of {size_bytes} bytes");
        Self { path: PathBuf::from(name), size_bytes, sector_size_bytes, blocks: RwLock::default() }
    }

    /// All bytes of the disk; for disks that fit.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size_bytes as usize];
        self.copy_out(0, &mut bytes);
        bytes
    }

    /// Bytes of memory that hold data.
    pub fn stored_bytes(&self) -> u64 {
        self.blocks.read().len() as u64 * BLOCK_BYTES
    }

    fn copy_out(&self, offset: u64, buffer: &mut [u8]) {
        let blocks = self.blocks.read();
        for piece in pieces(offset, buffer.len() as u64) {
            let target = &mut buffer[piece.position..piece.position + piece.length];
            match blocks.get(&piece.block) {
                Some(block) => target.copy_from_slice(&block[piece.inside..piece.inside + piece.length]),
                None => target.fill(0),
            }
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_size_bytes(&self) -> u32 {
        self.sector_size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        self.copy_out(offset, buffer);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(self, offset, data.len() as u64)?;
        let mut blocks = self.blocks.write();
        for piece in pieces(offset, data.len() as u64) {
            let block = blocks.entry(piece.block).or_insert_with(empty_block);
            let source = &data[piece.position..piece.position + piece.length];
            block[piece.inside..piece.inside + piece.length].copy_from_slice(source);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        check_range(self, offset, length_bytes)?;
        let mut blocks = self.blocks.write();
        for piece in pieces(offset, length_bytes) {
            if may_unmap && piece.length == BLOCK_BYTES as usize {
                blocks.remove(&piece.block);
            } else if !may_unmap || blocks.contains_key(&piece.block) {
                let block = blocks.entry(piece.block).or_insert_with(empty_block);
                block[piece.inside..piece.inside + piece.length].fill(0);
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_zeroes(offset, length_bytes, true)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        let end = end.min(self.size_bytes);
        let blocks = self.blocks.read();
        let first = offset / BLOCK_BYTES;
        let mut next = first;
        let kind = if blocks.contains_key(&first) { ExtentKind::Data } else { ExtentKind::Hole };
        match kind {
            ExtentKind::Data => {
                let run = blocks.range(first..).zip(first..).take_while(|((at, _), index)| **at == *index);
                next += run.count() as u64;
            }
            ExtentKind::Hole => next = blocks.range(first..).next().map_or(u64::MAX, |(at, _)| *at),
        }
        let stop = next.saturating_mul(BLOCK_BYTES).min(end);
        Ok(Extent { offset, length_bytes: stop - offset, kind })
    }
}

fn empty_block() -> Block {
    Box::new([0; BLOCK_BYTES as usize])
}

/// The part of a range that lies in one block.
struct Piece {
    block: u64,
    /// Where the part begins in the block.
    inside: usize,
    /// Where the part begins in the range.
    position: usize,
    length: usize,
}

fn pieces(offset: u64, length_bytes: u64) -> impl Iterator<Item = Piece> {
    let end = offset + length_bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        let inside = at % BLOCK_BYTES;
        let length = (BLOCK_BYTES - inside).min(end - at);
        let piece = Piece {
            block: at / BLOCK_BYTES,
            inside: inside as usize,
            position: (at - offset) as usize,
            length: length as usize,
        };
        at += length;
        (length > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terabyte_of_holes_costs_only_its_data() {
        let disk = MemoryDevice::new("big", 1 << 40);
        disk.write_at((1 << 39) - 512, &[5; 1024]).expect("a write across two blocks");
        assert_eq!(disk.stored_bytes(), 8192);
        let extent = disk.extent_at(0, 1 << 40).expect("an extent");
        assert_eq!((extent.kind, extent.length_bytes), (ExtentKind::Hole, (1 << 39) - 4096));
        let extent = disk.extent_at(extent.end(), 1 << 40).expect("an extent");
        assert_eq!((extent.kind, extent.length_bytes), (ExtentKind::Data, 8192));
        let extent = disk.extent_at(extent.end(), 1 << 40).expect("an extent");
        assert_eq!((extent.kind, extent.end()), (ExtentKind::Hole, 1 << 40));
    }

    #[test]
    fn a_discard_zeroes_parts_of_blocks_and_gives_whole_ones_back() {
        let disk = MemoryDevice::new("d", 16384);
        disk.write_at(0, &[9; 16384]).expect("a write");
        disk.discard(3584, 9216).expect("a discard");
        let mut expected = vec![9; 16384];
        expected[3584..12800].fill(0);
        assert_eq!(disk.bytes(), expected);
        assert_eq!(disk.stored_bytes(), 8192);
        disk.write_zeroes(4096, 4096, false).expect("zeros");
        assert_eq!(disk.stored_bytes(), 12288, "zeros that keep their space are stored");
    }

    #[test]
    fn a_clone_is_another_disk() {
        let disk = MemoryDevice::new("d", 4096);
        let copy = disk.clone();
        disk.write_at(0, &[1; 512]).expect("a write");
        assert_eq!(copy.bytes(), vec![0; 4096]);
    }
}
