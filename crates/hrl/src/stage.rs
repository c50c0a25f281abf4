//! One batch on its way into a log: everything is laid out in memory first, then written with one call each to the
//! log and the index, then committed. A failed write leaves the writer where it was.

use std::io::IoSlice;

use crate::checksum::byte_sum_checksum;
use crate::entry::{Append, Entry, Operation, data_hash};
use crate::index::{RECORD_BYTES, encode_record};
use crate::metadata::{BLOCK_BYTES, Block, BlockHeader, ENTRIES_PER_BLOCK_MAX, RawEntry, SLOT_BYTES};
use crate::seal::{Seal, SealKey, fold};
use crate::time::seconds_since_2000;

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where the next byte goes.
    pub position: u64,
    /// Where the last metadata block stands.
    pub last_block: u64,
    /// Sequence number of the next entry.
    pub next_sequence: u64,
    /// Entries in the log.
    pub entry_count: u64,
    /// Bytes of data in the log.
    pub data_bytes: u64,
    /// Time of the first entry; 0 when there is none.
    pub first_time_ns: u64,
    /// Time of the last entry; 0 when there is none.
    pub last_time_ns: u64,
}

impl Tail {
    /// Moves past an entry.
    pub fn count(&mut self, entry: &Entry) {
        if self.entry_count == 0 {
            self.first_time_ns = entry.time_ns;
        }
        self.last_time_ns = entry.time_ns;
        self.entry_count += 1;
        self.next_sequence = self.next_sequence.wrapping_add(1); // a hostile index may begin at the very end
        self.data_bytes += entry.data_bytes();
        self.position += entry.data_bytes();
    }
}

/// An entry that no metadata block describes yet.
#[derive(Debug, Clone, Copy)]
pub struct Pending {
    pub slot: [u8; SLOT_BYTES],
    pub hash: u64,
}

impl Pending {
    pub fn of(entry: &Entry) -> Self {
        let raw = RawEntry {
            offset: entry.offset,
            length_bytes: entry.length_bytes,
            seconds: seconds_since_2000(entry.time_ns),
            operation: entry.operation,
            data_checksum: entry.data_checksum,
        };
        Self { slot: raw.encode(), hash: entry.data_hash.unwrap_or(0) }
    }
}

/// Buffers that live as long as the writer.
#[derive(Default)]
pub struct Scratch {
    pending: Vec<Pending>,
    blocks: Vec<Block>,
    records: Vec<u8>,
}

impl Scratch {
    pub fn with_pending(pending: Vec<Pending>) -> Self {
        Self { pending, ..Self::default() }
    }
}

enum Part<'a> {
    Data(&'a [u8]),
    Block(usize),
}

/// A batch being laid out.
pub struct Stage<'s, 'a> {
    pub tail: Tail,
    scratch: &'s mut Scratch,
    key: &'s SealKey,
    record_seed: u64,
    durable: u64,
    pending_before: usize,
    /// Pending entries that a block of this batch describes.
    described: usize,
    parts: Vec<Part<'a>>,
}

impl<'s, 'a> Stage<'s, 'a> {
    pub fn start(
        tail: Tail,
        scratch: &'s mut Scratch,
        key: &'s SealKey,
        record_seed: u64,
        durable: u64,
    ) -> Self {
        scratch.blocks.clear();
        scratch.records.clear();
        let pending_before = scratch.pending.len();
        Self { tail, scratch, key, record_seed, durable, pending_before, described: 0, parts: Vec::new() }
    }

    pub fn push(&mut self, piece: Append<'a>) {
        let length_bytes = piece.length_bytes as u32; // pieces() cuts below 2^32
        let is_write = piece.operation == Operation::Write;
        let entry = Entry {
            operation: piece.operation,
            offset: piece.offset,
            length_bytes,
            time_ns: piece.time_ns,
            sequence: self.tail.next_sequence,
            log_offset: self.tail.position,
            data_checksum: if is_write { byte_sum_checksum(piece.data) } else { 0 },
            data_hash: Some(data_hash(piece.operation, piece.offset, length_bytes, piece.data)),
        };
        if is_write {
            self.parts.push(Part::Data(piece.data));
        }
        self.scratch.pending.push(Pending::of(&entry));
        self.scratch.records.extend_from_slice(&encode_record(&entry, self.record_seed));
        self.tail.count(&entry);
        if self.scratch.pending.len() - self.described == ENTRIES_PER_BLOCK_MAX {
            self.close_block();
        }
    }

    /// Describes all pending entries by a block; nothing when there are none.
    pub fn close_block(&mut self) {
        let entries = &self.scratch.pending[self.described..];
        if entries.is_empty() {
            return;
        }
        let distance = self.tail.position - self.tail.last_block;
        let block = make_block(entries, distance, self.tail.position, self.durable, self.key);
        self.described = self.scratch.pending.len();
        self.parts.push(Part::Block(self.scratch.blocks.len()));
        self.scratch.blocks.push(block);
        self.tail.last_block = self.tail.position;
        self.tail.position += BLOCK_BYTES as u64;
    }

    /// What goes into the log, in order.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let slice = |part: &Part<'a>| match part {
            Part::Data(data) => IoSlice::new(data),
            Part::Block(index) => IoSlice::new(&self.scratch.blocks[*index]),
        };
        self.parts.iter().map(slice).collect()
    }

    /// What goes into the index.
    pub fn records(&self) -> &[u8] {
        debug_assert!(self.scratch.records.len().is_multiple_of(RECORD_BYTES));
        &self.scratch.records
    }

    /// Both files hold the batch: the pending entries that a block describes are done with.
    pub fn commit(self) -> Tail {
        self.scratch.pending.drain(..self.described);
        self.tail
    }

    /// A write failed: the writer stays where it was.
    pub fn roll_back(self) {
        self.scratch.pending.truncate(self.pending_before);
    }
}

/// A sealed metadata block for `entries`, to stand at `position`.
pub fn make_block(entries: &[Pending], distance: u64, position: u64, durable: u64, key: &SealKey) -> Block {
    debug_assert!(entries.len() <= ENTRIES_PER_BLOCK_MAX);
    let mut block = [0u8; BLOCK_BYTES];
    let header = BlockHeader { previous_distance: distance, entry_count: entries.len() as u32 };
    block[..SLOT_BYTES].copy_from_slice(&header.encode());
    for (slot, entry) in block[SLOT_BYTES..].chunks_exact_mut(SLOT_BYTES).zip(entries) {
        slot.copy_from_slice(&entry.slot);
    }
    let fold = fold(entries.iter().map(|entry| entry.hash));
    key.seal(&mut block, position, Seal { durable, fold });
    block
}
