//! Metadata blocks, [MS-HRL] 2.3 and 2.4: a 32-byte header, then 32-byte entries, behind the data they describe.

use crate::bytes::{get_u32, get_u64, put};
use crate::checksum::byte_sum_checksum_without;
use crate::entry::{Entry, Operation};

/// Size of a block header and of an entry.
pub const SLOT_BYTES: usize = 32;
/// Size of the blocks we write.
pub const BLOCK_BYTES: usize = 4096;
/// Entries we put into a block: 4096 / 32 - 1 slots, of which the last one carries the seal.
pub const ENTRIES_PER_BLOCK_MAX: usize = BLOCK_BYTES / SLOT_BYTES - 2;
const _: () = assert!(ENTRIES_PER_BLOCK_MAX == 126);

const HEADER_CHECKSUM: usize = 12;
const ENTRY_CHECKSUM: usize = 8;

/// A metadata block as bytes.
pub type Block = [u8; BLOCK_BYTES];

/// The header of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Distance back to the block before; 0 in the first.
    pub previous_distance: u64,
    /// Entries in this block.
    pub entry_count: u32,
}

impl BlockHeader {
    /// The 32 bytes.
    pub fn encode(self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        put(&mut slot, 0, &self.previous_distance.to_le_bytes());
        put(&mut slot, 8, &self.entry_count.to_le_bytes());
        let checksum = byte_sum_checksum_without(&slot, HEADER_CHECKSUM..HEADER_CHECKSUM + 4);
        put(&mut slot, HEADER_CHECKSUM, &checksum.to_le_bytes());
        slot
    }

    /// Reads a header; `None` when its checksum is wrong.
    pub fn parse(slot: &[u8]) -> Option<Self> {
        let slot = &slot[..SLOT_BYTES];
        let checksum = byte_sum_checksum_without(slot, HEADER_CHECKSUM..HEADER_CHECKSUM + 4);
        (checksum == get_u32(slot, HEADER_CHECKSUM))
            .then(|| Self { previous_distance: get_u64(slot, 0), entry_count: get_u32(slot, 8) })
    }
}

/// An entry as the log itself holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEntry {
    /// ByteOffset.
    pub offset: u64,
    /// DataLength.
    pub length_bytes: u32,
    /// TimeStamp, seconds since 2000.
    pub seconds: u32,
    /// MetaOperation.
    pub operation: Operation,
    /// DataChecksum; 0 means not computed.
    pub data_checksum: u32,
}

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFault {
    /// Its checksum is wrong.
    Checksum,
    /// Its MetaOperation is not known.
    Operation(u8),
    /// Its range passes the end of 64 bits.
    Range,
}

impl std::fmt::Display for EntryFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checksum => f.write_str("checksum of the entry is wrong"),
            Self::Range => f.write_str("range of the entry passes 2^64"),
            Self::Operation(code) => write!(f, "MetaOperation {code} is not known"),
        }
    }
}

impl RawEntry {
    /// The 32 bytes.
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        put(&mut slot, 0, &self.offset.to_le_bytes());
        put(&mut slot, 12, &self.length_bytes.to_le_bytes());
        put(&mut slot, 16, &self.seconds.to_le_bytes());
        slot[20] = self.operation.code();
        put(&mut slot, 21, &self.data_checksum.to_le_bytes());
        let checksum = byte_sum_checksum_without(&slot, ENTRY_CHECKSUM..ENTRY_CHECKSUM + 4);
        put(&mut slot, ENTRY_CHECKSUM, &checksum.to_le_bytes());
        slot
    }

    /// The entry as the room hands it out, without a hash.
    pub fn entry(&self, sequence: u64, log_offset: u64, time_ns: u64) -> Entry {
        Entry {
            operation: self.operation,
            offset: self.offset,
            length_bytes: self.length_bytes,
            time_ns,
            sequence,
            log_offset,
            data_checksum: self.data_checksum,
            data_hash: None,
        }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(slot: &[u8]) -> std::result::Result<Self, EntryFault> {
        let slot = &slot[..SLOT_BYTES];
        let checksum = byte_sum_checksum_without(slot, ENTRY_CHECKSUM..ENTRY_CHECKSUM + 4);
        if checksum != get_u32(slot, ENTRY_CHECKSUM) {
            return Err(EntryFault::Checksum);
        }
        let operation = Operation::from_code(slot[20]).ok_or(EntryFault::Operation(slot[20]))?;
        let (offset, length_bytes) = (get_u64(slot, 0), get_u32(slot, 12));
        if offset.checked_add(u64::from(length_bytes)).is_none() {
            return Err(EntryFault::Range);
        }
        Ok(Self {
            offset,
            length_bytes,
            seconds: get_u32(slot, 16),
            operation,
            data_checksum: get_u32(slot, 21),
        })
    }
}

/// The n-th entry slot of a block.
pub fn entry_slot(block: &[u8], index: usize) -> &[u8] {
    &block[(index + 1) * SLOT_BYTES..(index + 2) * SLOT_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_block_header() {
        let checksum = |previous_distance, entry_count| {
            get_u32(&BlockHeader { previous_distance, entry_count }.encode(), HEADER_CHECKSUM)
        };
        assert_eq!(checksum(0, 0), 4_294_967_295);
        assert_eq!(checksum(324_096, 58), 4_294_966_991);
    }

    #[test]
    fn vectors_of_the_entry() {
        let vectors = [
            (3_626_340_352, 4096, 539_842_382, 4_294_966_639),
            (3_626_344_448, 4096, 539_842_382, 4_294_966_623),
            (3_626_348_544, 8192, 539_842_382, 4_294_966_591),
            (10_188_185_600, 4096, 539_842_382, 4_294_966_776),
            (139_058_688, 512, 539_842_381, 4_294_966_748),
            (135_266_304, 1024, 539_842_382, 4_294_967_024),
        ];
        for (offset, length_bytes, seconds, checksum) in vectors {
            let entry =
                RawEntry { offset, length_bytes, seconds, operation: Operation::Write, data_checksum: 0 };
            let slot = entry.encode();
            assert_eq!(get_u32(&slot, ENTRY_CHECKSUM), checksum, "entry at {offset}");
            assert_eq!(RawEntry::parse(&slot), Ok(entry));
        }
    }

    #[test]
    fn every_flipped_byte_of_an_entry_is_refused() {
        let entry = RawEntry {
            offset: 4096,
            length_bytes: 512,
            seconds: 7,
            operation: Operation::Discard,
            data_checksum: 0x0102_0304,
        };
        for position in 0..SLOT_BYTES {
            let mut slot = entry.encode();
            slot[position] ^= 0x40;
            assert_eq!(RawEntry::parse(&slot), Err(EntryFault::Checksum), "byte {position}");
        }
    }
}
