//! Carries out entries of a log on a disk again, and reads what they cover. Idempotent: entries in the order of their
//! log lead to the state at its end, however many of them the disk had already.

use secondsite_hrl::{Entry, LogFile, LogReader, LogWriter, Operation};

use super::CHUNK_BYTES;
use super::bits::SparseBits;
use crate::device::BlockDevice;
use crate::error::Result;

/// After the death of a process at most the batch in flight is not on the disk: entries looked at, from the end...
const REDONE_ENTRIES: u64 = 1024;
/// ...and their bytes; both far more than one request holds.
const REDONE_BYTES: u64 = 128 << 20;
const _: () = assert!(REDONE_BYTES > 2 * super::order::PIECE_DATA_BYTES);

/// Carries out one entry.
pub(crate) fn redo_entry(device: &dyn BlockDevice, entry: &Entry, data: &[u8]) -> Result<()> {
    match entry.operation {
        Operation::Write => device.write_at(entry.offset, data),
        Operation::WriteZeroes => device.write_zeroes(entry.offset, u64::from(entry.length_bytes), false),
        Operation::Discard => device.discard(entry.offset, u64::from(entry.length_bytes)),
    }
}

/// Carries out the entries of a sealed log from sequence number `floor` on. Returns their bytes.
pub(crate) fn redo_sealed<F: LogFile>(
    device: &dyn BlockDevice,
    log: &LogReader<F>,
    floor: u64,
) -> Result<u64> {
    let (mut entries, mut batch, mut data, mut bytes) = (log.entries()?, Vec::new(), Vec::new(), 0);
    while entries.next_batch(&mut batch)? {
        for entry in batch.iter().filter(|entry| entry.sequence >= floor) {
            data.resize(entry.data_bytes() as usize, 0);
            log.read_data(entry, &mut data)?;
            redo_entry(device, entry, &data)?;
            bytes += u64::from(entry.length_bytes);
        }
    }
    Ok(bytes)
}

/// What a redo of an open log came to.
#[derive(Debug, Default)]
pub(crate) struct Redone {
    pub(crate) bytes: u64,
    /// Ranges that the disk refused.
    pub(crate) refused: Vec<(u64, u64)>,
}

/// Carries out the entries of an open log from number `first` on, those below sequence number `floor` left out. The
/// disk may refuse some.
pub(crate) fn redo_open<F: LogFile>(
    device: &dyn BlockDevice,
    log: &LogWriter<F>,
    first: u64,
    floor: u64,
) -> Result<Redone> {
    let (mut batch, mut data, mut number, mut redone) = (Vec::new(), Vec::new(), first, Redone::default());
    while log.read_entries(number, &mut batch)? {
        for entry in batch.iter().filter(|entry| entry.sequence >= floor) {
            data.resize(entry.data_bytes() as usize, 0);
            log.read_data(entry, &mut data)?;
            match redo_entry(device, entry, &data) {
                Ok(()) => redone.bytes += u64::from(entry.length_bytes),
                Err(_) => redone.refused.push((entry.offset, u64::from(entry.length_bytes))),
            }
        }
        number += batch.len() as u64;
    }
    Ok(redone)
}

/// The first entry that the death of a process may have kept from the disk.
pub(crate) fn first_in_flight<F: LogFile>(log: &LogWriter<F>, proven_by_blocks: u64) -> Result<u64> {
    let count = log.entry_count();
    let earliest = count.saturating_sub(REDONE_ENTRIES.max(proven_by_blocks));
    let (mut first, mut bytes, mut batch) = (count, 0, Vec::new());
    log.read_entries(earliest, &mut batch)?;
    for entry in batch.iter().rev() {
        bytes += entry.data_bytes();
        if bytes > REDONE_BYTES && proven_by_blocks == 0 {
            break;
        }
        first -= 1;
    }
    Ok(first.max(earliest))
}

/// The chunks that the entries of an open log cover.
pub(crate) fn ranges_of_open<F: LogFile>(log: &LogWriter<F>, chunk_count: u64) -> Result<SparseBits> {
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
) -> Result<()> {
    log.entries()?.for_each(|entry| {
        cover(bits, entry, chunk_count);
        Ok(())
    })?;
    Ok(())
}

fn cover(bits: &mut SparseBits, entry: &Entry, chunk_count: u64) {
    let chunks = entry.offset / CHUNK_BYTES..entry.end().div_ceil(CHUNK_BYTES).min(chunk_count);
    if !bits.contains(chunks.clone()) {
        bits.set(chunks, |_| ());
    }
}
