//! Brings back what single entries of a damaged log still prove, when the log as a whole proves nothing any more.
//!
//! A record is checked with a seed that only this log has, and carries the hash of its data: so each entry whose record
//! and data check was written by this log's writer, whatever is wrong around it. A log whose index is lost but which
//! is sealed is read by its metadata blocks, and their checksums of the data.

use crate::data::{read, sums_of};
use crate::entry::{Entry, WRITE_BYTES_MAX};
use crate::error::Result;
use crate::file::LogFile;
use crate::index::IndexHeader;
use crate::reader::{LogReader, ReadOptions};
use crate::records::Records;

/// Hands each entry that proves itself to `visit`, with its data, in the order of the log. Returns how many.
///
/// Nothing is changed. Entries are independent: the one before may be missing. For redoing writes on a disk that
/// has lost them, never for a replica, whose points need every entry.
///
/// # Errors
/// LOG_INDEX_MISMATCH, LOG_CORRUPT and others of a log of which nothing can be read.
pub fn salvage<F: LogFile + Clone>(log: &F, index: &F, mut visit: impl FnMut(&Entry, &[u8])) -> Result<u64> {
    match IndexHeader::read(index) {
        Ok(identity) => by_index(log, index, &identity, &mut visit),
        Err(_) => by_blocks(log, &mut visit),
    }
}

fn by_index<F: LogFile>(
    log: &F,
    index: &F,
    identity: &IndexHeader,
    visit: &mut dyn FnMut(&Entry, &[u8]),
) -> Result<u64> {
    let mut records = Records::open(index, identity.record_seed())?;
    let (mut data, mut count) = (Vec::new(), 0);
    for number in 0..records.slot_count() {
        let Ok(Some(entry)) = records.get(number) else { continue };
        let is_ours = entry.sequence == identity.first_sequence.wrapping_add(number)
            && entry.data_bytes() <= WRITE_BYTES_MAX;
        if is_ours && proves_itself(log, &entry, &mut data) {
            visit(&entry, &data);
            count += 1;
        }
    }
    Ok(count)
}

fn proves_itself<F: LogFile>(log: &F, entry: &Entry, data: &mut Vec<u8>) -> bool {
    data.resize(entry.data_bytes() as usize, 0);
    let is_read = read(log, data, entry.log_offset).unwrap_or(false);
    is_read && sums_of(entry, data).agree_with(entry)
}

fn by_blocks<F: LogFile + Clone>(log: &F, visit: &mut dyn FnMut(&Entry, &[u8])) -> Result<u64> {
    let reader = LogReader::from_files(log.clone(), None, ReadOptions::default())?;
    let (mut entries, mut batch, mut data, mut count) = (reader.entries()?, Vec::new(), Vec::new(), 0);
    while entries.next_batch(&mut batch)? {
        for entry in batch.iter().filter(|entry| entry.data_bytes() <= WRITE_BYTES_MAX) {
            if proves_itself(log, entry, &mut data) {
                visit(entry, &data);
                count += 1;
            }
        }
    }
    Ok(count)
}
