//! What a log is made of, seen from outside: operations, entries and requests to append one.

use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use crate::error::{HrlError, Place, Result};

/// All offsets and lengths in our logs are multiples of this.
pub const SECTOR_BYTES: u64 = 512;
/// The longest write one entry carries; longer ones are split.
pub const WRITE_BYTES_MAX: u64 = 64 << 20;
/// The longest zero or discard range of one entry (DataLength has 32 bits); longer ones are split.
pub const RANGE_BYTES_MAX: u64 = 1 << 31;

/// What an entry does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Data replaces the range. MetaOperation 1, the only one of [MS-HRL].
    Write,
    /// The range reads back as zeros and stays allocated. MetaOperation 2 (our profile).
    WriteZeroes,
    /// The range reads back as zeros and is given back. MetaOperation 3 (our profile).
    Discard,
}

impl Operation {
    /// MetaOperation of [MS-HRL] 2.4 and of our profile.
    pub fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::WriteZeroes => 2,
            Self::Discard => 3,
        }
    }

    /// The operation of a MetaOperation, if known.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Write),
            2 => Some(Self::WriteZeroes),
            3 => Some(Self::Discard),
            _ => None,
        }
    }

    /// Bytes that an entry of this length occupies in the log.
    pub fn data_bytes(self, length_bytes: u32) -> u64 {
        if self == Self::Write { u64::from(length_bytes) } else { 0 }
    }
}

/// One entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it does.
    pub operation: Operation,
    /// Offset on the disk.
    pub offset: u64,
    /// Length of the range on the disk.
    pub length_bytes: u32,
    /// When it was written, Unix nanoseconds; whole seconds where there is no index.
    pub time_ns: u64,
    /// Its number among all entries of the disk; counted from 0 in a log without an index.
    pub sequence: u64,
    /// Where its data stands in the log (also of entries that carry none: where it would stand).
    pub log_offset: u64,
    /// DataChecksum of [MS-HRL] 2.4; 0 means not computed.
    pub data_checksum: u32,
    /// XXH3-64 over offset, length, operation and data; `None` without an index.
    pub data_hash: Option<u64>,
}

impl Entry {
    /// Bytes it occupies in the log.
    pub fn data_bytes(&self) -> u64 {
        self.operation.data_bytes(self.length_bytes)
    }

    /// End of its range on the disk.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length_bytes))
    }
}

/// A request to append one entry; the data stays the caller's.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// What it does.
    pub operation: Operation,
    /// Offset on the disk, a multiple of 512.
    pub offset: u64,
    /// Length on the disk, a multiple of 512; of a write the length of `data`.
    pub length_bytes: u64,
    /// The data of a write; empty otherwise.
    pub data: &'a [u8],
    /// When it was written, Unix nanoseconds.
    pub time_ns: u64,
}

impl<'a> Append<'a> {
    /// A write of `data`.
    pub fn write(offset: u64, data: &'a [u8], time_ns: u64) -> Self {
        Self { operation: Operation::Write, offset, length_bytes: data.len() as u64, data, time_ns }
    }

    /// A range of zeros that stays allocated.
    pub fn write_zeroes(offset: u64, length_bytes: u64, time_ns: u64) -> Self {
        Self { operation: Operation::WriteZeroes, offset, length_bytes, data: &[], time_ns }
    }

    /// A range of zeros that is given back.
    pub fn discard(offset: u64, length_bytes: u64, time_ns: u64) -> Self {
        Self { operation: Operation::Discard, offset, length_bytes, data: &[], time_ns }
    }

    /// Refuses what no entry can hold, before anything is written.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let wrong = |reason: String| Err(HrlError::InvalidRequest(Place::new(path, 0, reason)));
        let (offset, length) = (self.offset, self.length_bytes);
        if !offset.is_multiple_of(SECTOR_BYTES) || !length.is_multiple_of(SECTOR_BYTES) {
            let reason = format!("range {offset}+{length} of the disk");
            return Err(HrlError::Unaligned(Place::new(path, 0, reason)));
        }
        if length == 0 || offset.checked_add(length).is_none() {
            return wrong(format!("range {offset}+{length} is empty or passes 2^64"));
        }
        let data_bytes = if self.operation == Operation::Write { length } else { 0 };
        if self.data.len() as u64 != data_bytes {
            return wrong(format!(
                "{:?} of {length} bytes with {} bytes of data",
                self.operation,
                self.data.len()
            ));
        }
        Ok(())
    }

    /// The pieces that each fit into one entry.
    pub(crate) fn pieces(self) -> impl Iterator<Item = Append<'a>> {
        let piece_max = if self.operation == Operation::Write { WRITE_BYTES_MAX } else { RANGE_BYTES_MAX };
        (0..self.length_bytes.div_ceil(piece_max)).map(move |index| {
            let start = index * piece_max;
            let length_bytes = piece_max.min(self.length_bytes - start);
            let data = match self.operation {
                Operation::Write => &self.data[start as usize..(start + length_bytes) as usize],
                _ => &[],
            };
            Append { offset: self.offset + start, length_bytes, data, ..self }
        })
    }
}

/// XXH3-64 over offset, length, operation and data: the hash of the index.
///
/// The XXH3-64 of offset, length and operation is the seed, so the data is hashed in one pass over the caller's buffer.
pub fn data_hash(operation: Operation, offset: u64, length_bytes: u32, data: &[u8]) -> u64 {
    xxh3_64_with_seed(data, hash_seed(operation, offset, length_bytes))
}

/// [`data_hash`] fed piece by piece.
pub(crate) struct DataHasher(Xxh3);

impl DataHasher {
    pub(crate) fn new(operation: Operation, offset: u64, length_bytes: u32) -> Self {
        Self(Xxh3::with_seed(hash_seed(operation, offset, length_bytes)))
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}

fn hash_seed(operation: Operation, offset: u64, length_bytes: u32) -> u64 {
    let mut head = [0u8; 13];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..12].copy_from_slice(&length_bytes.to_le_bytes());
    head[12] = operation.code();
    xxh3_64(&head)
}
