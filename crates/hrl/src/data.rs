//! Reading and proving the data of an entry, in pieces of bounded size.

use std::io::ErrorKind;

use crate::checksum::byte_sum;
use crate::entry::{DataHasher, Entry, data_hash};
use crate::error::{HrlError, Result};
use crate::file::LogFile;

/// Data is read in pieces of this size.
pub const PIECE_BYTES: usize = 1 << 20;

/// What the data of an entry comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataSums {
    /// Hash of the index.
    pub hash: u64,
    /// DataChecksum of [MS-HRL]; 0 for entries without data.
    pub checksum: u32,
}

impl DataSums {
    /// Whether the entry's own hash, or else its checksum, agrees. An entry that carries neither is believed.
    pub fn agree_with(&self, entry: &Entry) -> bool {
        match entry.data_hash {
            Some(hash) => {
                hash == self.hash && (entry.data_checksum == 0 || entry.data_checksum == self.checksum)
            }
            None => entry.data_checksum == 0 || entry.data_checksum == self.checksum,
        }
    }
}

/// The sums of an entry's data as it stands in the log; `None` when the log ends before it does.
pub fn sums_in_log<F: LogFile + ?Sized>(
    log: &F,
    entry: &Entry,
    buffer: &mut Vec<u8>,
) -> Result<Option<DataSums>> {
    let length = entry.data_bytes();
    if length <= PIECE_BYTES as u64 {
        buffer.resize(length as usize, 0);
        return Ok(read(log, buffer, entry.log_offset)?.then(|| sums_of(entry, buffer)));
    }
    let mut hasher = DataHasher::new(entry.operation, entry.offset, entry.length_bytes);
    let (mut sum, mut done) = (0u32, 0u64);
    while done < length {
        buffer.resize((length - done).min(PIECE_BYTES as u64) as usize, 0);
        if !read(log, buffer, entry.log_offset + done)? {
            return Ok(None);
        }
        hasher.update(buffer);
        sum = sum.wrapping_add(byte_sum(buffer));
        done += buffer.len() as u64;
    }
    Ok(Some(DataSums { hash: hasher.finish(), checksum: !sum }))
}

/// The sums of an entry's data in memory.
pub fn sums_of(entry: &Entry, data: &[u8]) -> DataSums {
    let checksum = if entry.data_bytes() == 0 { 0 } else { !byte_sum(data) };
    DataSums { hash: data_hash(entry.operation, entry.offset, entry.length_bytes, data), checksum }
}

/// Fills `buffer`; false when the file ends before.
pub fn read<F: LogFile + ?Sized>(file: &F, buffer: &mut [u8], offset: u64) -> Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(HrlError::read(file.path(), offset, "read", e)),
    }
}

/// The size of a file.
pub fn size_bytes<F: LogFile + ?Sized>(file: &F) -> Result<u64> {
    file.size_bytes().map_err(|e| HrlError::read(file.path(), 0, "stat", e))
}
