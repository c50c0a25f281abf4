//! A disk as a stack of layers: each layer is a [`BlockDevice`] over another one and adds one concern.

use std::io::IoSlice;
use std::path::Path;

use crate::error::{DiskError, Place, Result};

/// What a range of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes are stored.
    Data,
    /// Nothing is stored; it reads as zeros.
    Hole,
}

/// A range of a disk of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, more than 0.
    pub length_bytes: u64,
    /// Data or hole.
    pub kind: ExtentKind,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.length_bytes
    }
}

/// A disk: positional reads and writes from any thread.
///
/// Ranges are multiples of 512 bytes and lie inside the disk. Writes of different callers to overlapping ranges are in no
/// order here; the tracked disk makes one. Nothing is durable before [`flush`](Self::flush).
pub trait BlockDevice: Send + Sync {
    /// The name shown in errors.
    fn path(&self) -> &Path;

    /// Size in bytes, a multiple of 512. It may grow, see [`refresh_size`](Self::refresh_size),
    /// and shrink, see [`note_shrunk`](Self::note_shrunk).
    fn size_bytes(&self) -> u64;

    /// Looks at the medium's size again. From then on a larger one is the size of this disk; a smaller one is only told.
    ///
    /// # Errors
    /// DISK_READ_FAILED, DISK_SIZE_UNALIGNED.
    fn refresh_size(&self) -> Result<u64> {
        Ok(self.size_bytes())
    }

    /// The medium has become smaller, and that was accepted: from then on this is the size.
    fn note_shrunk(&self, _size_bytes: u64) {}

    /// Unit of atomic writes of the medium: 512 or 4096.
    fn sector_size_bytes(&self) -> u32;

    /// Fills `buffer` from `offset`; holes read as zeros.
    ///
    /// # Errors
    /// DISK_OUT_OF_RANGE, DISK_READ_FAILED.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Fills `buffer` from `offset` if that takes no wait for the medium. False, and any content, when it would, or when
    /// nobody knows: then [`read_at`](Self::read_at) in another thread does not keep the caller waiting.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn read_cached(&self, _offset: u64, _buffer: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    /// Writes `data` at `offset`. On an error any part may be written.
    ///
    /// # Errors
    /// DISK_OUT_OF_RANGE, DISK_READ_ONLY, DISK_FULL, DISK_WRITE_FAILED.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Writes all slices one behind the other, from `offset` on. On an error any part may be written.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_vectored_at(&self, offset: u64, slices: &[IoSlice<'_>]) -> Result<()> {
        let mut at = offset;
        for slice in slices {
            self.write_at(at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeros; space stays allocated unless `may_unmap`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()>;

    /// Gives a range back; it reads as zeros afterwards.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()>;

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// DISK_SYNC_FAILED, then and at every later call: a failed sync is never retried as if it could succeed.
    fn flush(&self) -> Result<()>;

    /// Lets the writes to a range begin their way to the medium, so that a later flush finds less to do. A hint: nothing
    /// is durable by it, and nothing is said of errors, which the flush finds.
    fn start_writeback(&self, _offset: u64, _length_bytes: u64) {}

    /// The extent that begins at `offset`, at most to `end`.
    ///
    /// # Errors
    /// DISK_READ_FAILED.
    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent>;
}

/// Refuses a range that is empty, unaligned or outside of the disk.
///
/// # Errors
/// DISK_OUT_OF_RANGE.
pub fn check_range(device: &(impl BlockDevice + ?Sized), offset: u64, length_bytes: u64) -> Result<()> {
    let end = offset.checked_add(length_bytes);
    let is_inside = end.is_some_and(|end| end <= device.size_bytes());
    if is_inside && length_bytes > 0 && offset.is_multiple_of(512) && length_bytes.is_multiple_of(512) {
        return Ok(());
    }
    Err(DiskError::OutOfRange(Place::new(device.path(), offset, length_bytes)))
}

/// The extents of a range, neighbours of one kind joined.
///
/// # Errors
/// DISK_READ_FAILED.
pub fn extents(device: &(impl BlockDevice + ?Sized), offset: u64, length_bytes: u64) -> Result<Vec<Extent>> {
    let end = offset + length_bytes;
    let (mut at, mut list): (u64, Vec<Extent>) = (offset, Vec::new());
    while at < end {
        let extent = device.extent_at(at, end)?;
        at = extent.end();
        match list.last_mut() {
            Some(last) if last.kind == extent.kind => last.length_bytes += extent.length_bytes,
            _ => list.push(extent),
        }
    }
    Ok(list)
}
