//! Lists the entries of a log of any state, as far as they can be read.
//!
//! A sealed log is read by its index. Where that is missing, foreign or damaged, the metadata blocks take over from the
//! entry at which it stopped, so that one bad record hides no other. An open log is listed as recovery would keep it.
//! Data is neither read nor checked: [`crate::inspect`] does that. Nothing is changed.

use std::path::Path;

use crate::check::open;
use crate::entry::Entry;
use crate::error::{HrlError, Place, Result};
use crate::file::{FsLogFile, LogFile};
use crate::reader::{BATCH_ENTRIES_MAX, LogReader, ReadOptions};
use crate::recover::{RecoverMode, Recovery, read_header};

/// Hands the entries of a log to `visit` in batches of bounded size, until it answers false.
///
/// # Errors
/// What stopped the listing or made it leave the index, with file and offset, after all that is readable was handed
/// out: LOG_CORRUPT, LOG_INDEX_MISMATCH, LOG_TORN_TAIL, LOG_NOT_SEALED (an open log without an index) and the others
/// of [`crate::verify`].
pub fn list_entries(path: &Path, visit: &mut dyn FnMut(&[Entry]) -> bool) -> Result<()> {
    let (log, index) = open(path)?;
    if read_header(&log)?.is_sealed() {
        return list_sealed(path, visit);
    }
    match index {
        Some(index) => list_open(&log, &index, visit),
        None => {
            let reason = "the log was not closed and has no index: nothing in it can be found";
            Err(HrlError::NotSealed(Place::new(path, 44, reason)))
        }
    }
}

fn list_sealed(path: &Path, visit: &mut dyn FnMut(&[Entry]) -> bool) -> Result<()> {
    let mut listed = 0;
    let by_index = list_by(path, ReadOptions::default(), &mut listed, visit);
    let Err(damage) = by_index else { return Ok(()) };
    // Whether the blocks can be read or not, the damage that was met first is what the caller hears of.
    let _ = list_by(path, ReadOptions { ignore_index: true, ..ReadOptions::default() }, &mut listed, visit);
    Err(damage)
}

/// Leaves out the first `listed` entries, and counts those it hands out.
fn list_by(
    path: &Path,
    options: ReadOptions,
    listed: &mut u64,
    visit: &mut dyn FnMut(&[Entry]) -> bool,
) -> Result<()> {
    let reader = LogReader::open_with(path, options)?;
    let mut entries = reader.entries()?;
    let (mut batch, mut passed) = (Vec::new(), 0);
    loop {
        // A batch that failed holds what came before the damage.
        let more = entries.next_batch(&mut batch);
        let known = listed.saturating_sub(passed).min(batch.len() as u64);
        passed += batch.len() as u64;
        *listed = passed.max(*listed);
        let fresh = &batch[known as usize..];
        let wants_more = fresh.is_empty() || visit(fresh);
        if !more? || !wants_more {
            return Ok(());
        }
    }
}

fn list_open(log: &FsLogFile, index: &FsLogFile, visit: &mut dyn FnMut(&[Entry]) -> bool) -> Result<()> {
    let mut recovery = Recovery::start(log, index, RecoverMode::PowerLoss, false)?;
    let (mut batch, mut wants_more) = (Vec::with_capacity(BATCH_ENTRIES_MAX), true);
    let torn = recovery.run_with(&mut |entry| {
        batch.push(*entry);
        if batch.len() == BATCH_ENTRIES_MAX {
            wants_more = wants_more && visit(&batch);
            batch.clear();
        }
    })?;
    if wants_more && !batch.is_empty() {
        visit(&batch);
    }
    torn.map_or(Ok(()), |torn| Err(HrlError::TornTail(Place::new(log.path(), torn.offset, torn.reason))))
}
