//! The seal of a metadata block: what lets recovery believe a block it finds by scanning forward.
//!
//! [MS-HRL] chains its blocks backwards from EOLLocation, which an open log does not have, and its checksums are
//! plain sums. A guest may write anything, so its data may well look like a block. We therefore keep the last slot
//! of each block free of entries and put there a BLAKE3 keyed with a secret of the log (in the `.hrx` header, never
//! in the log), which no data can imitate and no earlier life of a recycled file can hold.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 4064 | 16 | keyed BLAKE3, truncated, over log id, block position, header and entries of the block, and the two fields below |
//! | 4080 | 8 | durable: the log was synced up to here before this block was written |
//! | 4088 | 8 | data fold: XXH3-64 over the data hashes of the entries |
//!
//! `durable` tells a torn tail from damage: what lies below it was safe once, so a bad byte there is damage, while
//! above it any loss is what a power cut does. The fold is apart from the BLAKE3, so that a block can be believed
//! (or not) without reading its data; otherwise a guest could make recovery hash the whole log for each imitation.

use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{get, get_u64, put};
use crate::id::LogId;
use crate::metadata::{BLOCK_BYTES, Block, BlockHeader, ENTRIES_PER_BLOCK_MAX, SLOT_BYTES};

const MAC: usize = BLOCK_BYTES - SLOT_BYTES;
const DURABLE: usize = MAC + 16;
const FOLD: usize = MAC + 24;
const DOMAIN: &[u8] = b"secondsite hrl block seal 1";

/// The secret of a log and what it is bound to.
#[derive(Clone)]
pub struct SealKey {
    /// UniqueId of the log.
    pub id: LogId,
    /// Random, one per log.
    pub key: [u8; 32],
}

/// What a valid seal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The log was durable up to here when the block was written.
    pub durable: u64,
    /// Fold of the data hashes of the entries, see [`fold`].
    pub fold: u64,
}

/// XXH3-64 over the data hashes, each as 8 little-endian bytes.
pub fn fold(hashes: impl Iterator<Item = u64>) -> u64 {
    let mut bytes = [0u8; ENTRIES_PER_BLOCK_MAX * 8];
    let mut length = 0;
    for hash in hashes {
        put(&mut bytes, length, &hash.to_le_bytes());
        length += 8;
    }
    xxh3_64(&bytes[..length])
}

impl SealKey {
    /// Writes the seal into the last slot of a block that is otherwise complete.
    pub fn seal(&self, block: &mut Block, position: u64, seal: Seal) {
        put(block, DURABLE, &seal.durable.to_le_bytes());
        put(block, FOLD, &seal.fold.to_le_bytes());
        if let Some(mac) = self.mac(block, position) {
            put(block, MAC, &mac);
        }
    }

    /// The seal of a block at `position`; `None` when it is not a block of this log at this place.
    pub fn open(&self, block: &Block, position: u64) -> Option<(BlockHeader, Seal)> {
        let header = BlockHeader::parse(block)?;
        let mac = self.mac(block, position)?;
        let used = (header.entry_count as usize + 1) * SLOT_BYTES;
        let is_ours = mac == get::<16>(block, MAC) && block[used..MAC].iter().all(|byte| *byte == 0);
        is_ours.then(|| (header, Seal { durable: get_u64(block, DURABLE), fold: get_u64(block, FOLD) }))
    }

    fn mac(&self, block: &Block, position: u64) -> Option<[u8; 16]> {
        let entries = BlockHeader::parse(block)?.entry_count as usize;
        if entries > ENTRIES_PER_BLOCK_MAX {
            return None;
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(DOMAIN);
        hasher.update(&self.id.0);
        hasher.update(&position.to_le_bytes());
        hasher.update(&block[DURABLE..]);
        hasher.update(&block[..(entries + 1) * SLOT_BYTES]);
        Some(get(hasher.finalize().as_bytes(), 0))
    }
}
