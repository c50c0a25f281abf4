//! Carries out entries of a log on a disk again, and reads what they cover. Idempotent: entries in the order of their
//! log lead to the state at its end, however many of them the disk had already.

use secondsite_hrl::{Entry, HrlError, LogFile, LogReader, LogWriter, Operation, salvage};

use super::CHUNK_BYTES;
use super::bits::SparseBits;
use super::files::File;
use crate::device::BlockDevice;
use crate::error;

/// After the death of a process at most the batch in flight is not on the disk: entries looked at, from the end...
pub(crate) const REDONE_ENTRIES: u64 = 1024;
/// ...and their bytes; both far more than one request holds.
pub(crate) const REDONE_BYTES: u64 = 128 << 20;
const _: () = assert!(REDONE_BYTES > 2 * super::order::PIECE_DATA_BYTES);

/// Carries out one entry, up to `end`.
fn redo_entry(device: &dyn BlockDevice, entry: &Entry, end: u64, data: &[u8]) -> error::Result<()> {
    let length_bytes = end - entry.offset;
    match entry.operation {
        Operation::Write => device.write_at(entry.offset, &data[..length_bytes as usize]),
        Operation::WriteZeroes => device.write_zeroes(entry.offset, length_bytes, false),
        Operation::Discard => device.discard(entry.offset, length_bytes),
    }
}

/// What a redo came to.
#[derive(Debug, Default)]
pub(crate) struct Redone {
    pub(crate) bytes: u64,
    /// Ranges that the disk refused.
    pub(crate) refused: Vec<(u64, u64)>,
    /// What could not be read of the log; the rest of it was redone.
    pub(crate) damage: Option<HrlError>,
}

impl Redone {
    /// What reaches past the end is of a time before the disk shrank: it has no place any more.
    fn redo(&mut self, device: &dyn BlockDevice, entry: &Entry, data: &[u8]) {
        let end = entry.end().min(device.size_bytes());
        if entry.offset >= end {
            return;
        }
        match redo_entry(device, entry, end, data) {
            Ok(()) => self.bytes += end - entry.offset,
            Err(_) => self.refused.push((entry.offset, end - entry.offset)),
        }
    }
}

/// Carries out the entries of a sealed log from sequence number `floor` on. Rotten data is passed over: what stands
/// behind it was promised to the guest as well.
pub(crate) fn redo_sealed<F: LogFile>(device: &dyn BlockDevice, log: &LogReader<F>, floor: u64) -> Redone {
    let mut redone = Redone::default();
    if let Err(e) = redo_readable(device, log, floor, &mut redone) {
        redone.damage.get_or_insert(e);
    }
    redone
}

fn redo_readable<F: LogFile>(
    device: &dyn BlockDevice,
    log: &LogReader<F>,
    floor: u64,
    redone: &mut Redone,
) -> Result<(), HrlError> {
    let (mut entries, mut batch, mut data) = (log.entries()?, Vec::new(), Vec::new());
    while entries.next_batch(&mut batch)? {
        for entry in batch.iter().filter(|entry| entry.sequence >= floor) {
            data.resize(entry.data_bytes() as usize, 0);
            match log.read_data(entry, &mut data) {
                Ok(()) => redone.redo(device, entry, &data),
                Err(e) => {
                    redone.damage.get_or_insert(e);
                }
            }
        }
    }
    Ok(())
}

/// Carries out what single entries of a damaged log still prove. A log of which nothing can be read gives nothing.
pub(crate) fn redo_salvaged(device: &dyn BlockDevice, log: &File, index: &File, floor: u64) -> Redone {
    let mut redone = Redone::default();
    let salvaged = salvage(log, index, |entry, data| {
        if entry.sequence >= floor {
            redone.redo(device, entry, data);
        }
    });
    redone.damage = salvaged.err();
    redone
}

/// Carries out the entries of an open log from number `first` on, those below sequence number `floor` left out. The
/// disk may refuse some.
pub(crate) fn redo_open<F: LogFile>(
    device: &dyn BlockDevice,
    log: &LogWriter<F>,
    first: u64,
    floor: u64,
) -> Result<Redone, HrlError> {
    let (mut batch, mut data, mut number, mut redone) = (Vec::new(), Vec::new(), first, Redone::default());
    while log.read_entries(number, &mut batch)? {
        for entry in batch.iter().filter(|entry| entry.sequence >= floor) {
            data.resize(entry.data_bytes() as usize, 0);
            log.read_data(entry, &mut data)?;
            redone.redo(device, entry, &data);
        }
        number += batch.len() as u64;
    }
    Ok(redone)
}

/// The first entry that the death of a process may have kept from the disk: the batch in flight is within the last
/// entries, or it is those that blocks alone prove. More is redone than need be, which is safe as long as everything
/// written later is redone too: so for the newest log only, and only while no write went past the logs.
pub(crate) fn first_in_flight<F: LogFile>(
    log: &LogWriter<F>,
    proven_by_blocks: u64,
) -> Result<u64, HrlError> {
    let count = log.entry_count();
    let proven = count.saturating_sub(proven_by_blocks);
    let (earliest, mut batch) = (count.saturating_sub(REDONE_ENTRIES), Vec::new());
    log.read_entries(earliest, &mut batch)?;
    let mut bytes = 0;
    let is_near = |entry: &&Entry| {
        bytes += entry.data_bytes();
        bytes <= REDONE_BYTES
    };
    let near = batch.iter().rev().take_while(is_near).count() as u64;
    Ok(proven.min(count - near))
}

/// The chunks that the entries of an open log cover.
pub(crate) fn ranges_of_open<F: LogFile>(
    log: &LogWriter<F>,
    chunk_count: u64,
) -> Result<SparseBits, HrlError> {
    let (mut bits, mut batch, mut number) = (SparseBits::default(), Vec::new(), 0);
    while log.read_entries(number, &mut batch)? {
        batch.iter().for_each(|entry| cover(&mut bits, entry, chunk_count));
        number += batch.len() as u64;
    }
    Ok(bits)
}

/// Adds the chunks that the entries of a sealed log cover.
pub(crate) fn add_ranges_of_sealed<F: LogFile>(
    log: &LogReader<F>,
    bits: &mut SparseBits,
    chunk_count: u64,
) -> Result<(), HrlError> {
    log.entries()?.for_each(|entry| {
        cover(bits, entry, chunk_count);
        Ok(())
    })
}

fn cover(bits: &mut SparseBits, entry: &Entry, chunk_count: u64) {
    let chunks = entry.offset / CHUNK_BYTES..entry.end().div_ceil(CHUNK_BYTES).min(chunk_count);
    if !bits.contains(chunks.clone()) {
        bits.set(chunks, |_| ());
    }
}
