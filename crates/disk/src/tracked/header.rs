//! The header of the tracking file: who the disk is, how it was left, where its chain of logs stands.
//!
//! All fields lie in the first sector of a 4096-byte copy, check included, so a copy is old or new and never mixed.
//! Two copies alternate, and a copy that is known to be durable is never overwritten before the other one is.

use secondsite_hrl::LogId;
use xxhash_rust::xxh3::xxh3_64;

use super::state::{Mode, ResyncReason};

/// Bytes of a copy.
pub(crate) const COPY_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"SSTEHRT1";
const VERSION: u32 = 1;
const CHECK: usize = 504;

/// What a closed disk looked like: any change of these was made behind our back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStamp {
    /// Size of the file.
    pub size_bytes: u64,
    /// Modification time, nanoseconds.
    pub mtime_ns: u64,
    /// Change time, nanoseconds.
    pub ctime_ns: u64,
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: u64,
    pub(crate) disk_id: [u8; 16],
    pub(crate) disk_size_bytes: u64,
    pub(crate) mode: Mode,
    pub(crate) reason: Option<ResyncReason>,
    /// The disk was closed in order, and looked like `stamp` then.
    pub(crate) is_clean: bool,
    pub(crate) stamp: DiskStamp,
    /// Hash of the boot id under which it was opened last.
    pub(crate) boot: u64,
    /// The number the next log to be created gets.
    pub(crate) next_number: u64,
    /// Logs below this number are given up (folded into a map) or released: leftovers to delete.
    pub(crate) first_number: u64,
    /// UniqueId of the newest log that was sealed, released or folded: what the next one follows when no log is left.
    pub(crate) last_id: LogId,
    /// Entries below this sequence number are durable on the disk: never redone.
    pub(crate) floor_sequence: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; COPY_BYTES as usize] {
        let mut bytes = [0; COPY_BYTES as usize];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &[self.mode.code(), self.reason.map_or(0, ResyncReason::code), u8::from(self.is_clean)]);
        put(16, &self.disk_id);
        put(32, &self.last_id.0);
        let stamp = &self.stamp;
        let numbers = [
            self.generation,
            self.disk_size_bytes,
            self.boot,
            self.next_number,
            self.first_number,
            self.floor_sequence,
            stamp.size_bytes,
            stamp.mtime_ns,
            stamp.ctime_ns,
            stamp.device,
            stamp.inode,
        ];
        numbers.iter().enumerate().for_each(|(n, number)| put(48 + n * 8, &number.to_le_bytes()));
        let check = xxh3_64(&bytes[..CHECK]);
        bytes[CHECK..CHECK + 8].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Whether a file that begins with these bytes is of a later version.
    pub(crate) fn is_newer(bytes: &[u8; 12]) -> bool {
        bytes[..8] == MAGIC && u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) > VERSION
    }

    /// `None` when the copy is damaged, was never written, or is of a version not known.
    pub(crate) fn parse(bytes: &[u8; COPY_BYTES as usize]) -> Option<Self> {
        let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b));
        let id = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).ok();
        let is_whole = bytes[..8] == MAGIC
            && bytes[8..12] == VERSION.to_le_bytes()
            && number(CHECK) == xxh3_64(&bytes[..CHECK]);
        if !is_whole {
            return None;
        }
        let field = |n: usize| number(48 + n * 8);
        Some(Self {
            mode: Mode::from_code(bytes[12])?,
            reason: ResyncReason::from_code(bytes[13]),
            is_clean: bytes[14] == 1,
            disk_id: id(16)?,
            last_id: LogId(id(32)?),
            generation: field(0),
            disk_size_bytes: field(1),
            boot: field(2),
            next_number: field(3),
            first_number: field(4),
            floor_sequence: field(5),
            stamp: DiskStamp {
                size_bytes: field(6),
                mtime_ns: field(7),
                ctime_ns: field(8),
                device: field(9),
                inode: field(10),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Header {
        Header {
            generation: 3,
            disk_id: [5; 16],
            disk_size_bytes: 1 << 40,
            mode: Mode::Map,
            reason: Some(ResyncReason::LogDiskFull),
            is_clean: true,
            stamp: DiskStamp { size_bytes: 1, mtime_ns: 2, ctime_ns: 3, device: 4, inode: 5 },
            boot: 6,
            next_number: 7,
            first_number: 8,
            last_id: LogId([9; 16]),
            floor_sequence: 10,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_and_no_flipped_bit_passes() {
        let bytes = sample().encode();
        assert_eq!(Header::parse(&bytes), Some(sample()));
        for bit in 0..512 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&flipped), None, "bit {bit}");
        }
        assert!(bytes[512..].iter().all(|b| *b == 0), "all of it lies in one sector");
    }
}
