//! What the order lock guards: the open log, the maps, and the one function that remembers a write.

use std::path::PathBuf;

use secondsite_hrl::{Append, HrlError, LogWriter};

use super::bits::SparseBits;
use super::dirty::Unreleased;
use super::file::Tracking;
use super::files::File;
use super::options::TrackOptions;
use super::state::{Mode, ResyncReason};

/// Sequence numbers: the number of the log in the upper bits, the entry in it in the lower. So the next log can be
/// created, durably, before it is known where the open one ends; numbers stay below 2^53 for 2^32 logs.
pub(crate) const SEQUENCE_BITS: u32 = 21;
/// Most entries of a log, with room for a batch.
const ENTRIES_HARD_MAX: u64 = (1 << SEQUENCE_BITS) - 1024;
/// Longest piece of data written in one step.
pub(crate) const PIECE_DATA_BYTES: u64 = 32 << 20;
/// Longest zero or discard range in one step.
pub(crate) const PIECE_RANGE_BYTES: u64 = 512 << 20;

/// A rotation that found no next log is tried again after so many bytes more.
const ROTATION_RETRY_BYTES: u64 = 1 << 20;

/// A log being written.
pub(crate) struct OpenLog {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) writer: LogWriter<File>,
}

/// A log that was swapped out and is not sealed yet.
pub(crate) struct Sealing {
    pub(crate) number: u64,
    pub(crate) log: File,
    pub(crate) index: File,
    /// The chunks it covers, for the case that sealing fails.
    pub(crate) ranges: SparseBits,
    /// The log itself, until somebody begins to seal it.
    pub(crate) open: Option<OpenLog>,
    pub(crate) cut_time_ns: u64,
}

/// What the order lock guards.
pub(crate) struct Order {
    pub(crate) tracking: Tracking,
    /// The open log; `None` exactly in mode `Map`.
    pub(crate) log: Option<OpenLog>,
    /// The next log, empty and durable.
    pub(crate) next: Option<OpenLog>,
    pub(crate) sealing: Vec<Sealing>,
    /// Chunks of each sealed log that was not released, by its number.
    pub(crate) unreleased: Unreleased,
    /// Logs that were given up and wait to be deleted, once the disk is synced.
    pub(crate) given_up: Vec<u64>,
    /// Chunks written since the last cut; they cover the open log.
    pub(crate) written: SparseBits,
    /// Chunks of the open log, where an earlier one of the same cut was rotated away.
    pub(crate) in_log: SparseBits,
    /// Something was written that no log holds, since the disk was synced last.
    pub(crate) is_unlogged_dirty: bool,
    /// No rotation before the open log has so many bytes: the last try found no next log.
    pub(crate) rotation_not_before_bytes: u64,
    pub(crate) write_count: u64,
    pub(crate) written_bytes: u64,
    pub(crate) last_hold_ns: u64,
    pub(crate) max_hold_ns: u64,
}

impl Order {
    pub(crate) fn new(tracking: Tracking, log: Option<OpenLog>) -> Self {
        Self {
            tracking,
            log,
            next: None,
            sealing: Vec::new(),
            unreleased: Unreleased::default(),
            given_up: Vec::new(),
            written: SparseBits::default(),
            in_log: SparseBits::default(),
            is_unlogged_dirty: false,
            rotation_not_before_bytes: 0,
            write_count: 0,
            written_bytes: 0,
            last_hold_ns: 0,
            max_hold_ns: 0,
        }
    }

    /// Remembers requests, before they are carried out on the disk. It cannot fail: what no log takes the map takes.
    pub(crate) fn remember(&mut self, appends: &[Append<'_>], options: &TrackOptions) {
        self.write_count += appends.len() as u64;
        self.written_bytes += appends.iter().map(|append| append.length_bytes).sum::<u64>();
        self.make_active(appends);
        options.step("activated");
        match self.log.as_mut().map(|log| log.append(appends)) {
            Some(Ok(())) => {
                appends.iter().for_each(|append| self.note_written(append));
                options.step("logged");
                return;
            }
            Some(Err(e)) => self.give_up_log(reason_of(&e)),
            None => {}
        }
        self.is_unlogged_dirty = true;
        appends.iter().for_each(|append| self.tracking.change(append.offset, append.length_bytes));
        options.step("mapped");
    }

    fn note_written(&mut self, append: &Append<'_>) {
        let chunks = self.tracking.chunks(append.offset, append.length_bytes);
        for bits in [&mut self.written, &mut self.in_log] {
            if !bits.contains(chunks.clone()) {
                bits.set(chunks.clone(), |_| ());
            }
        }
    }

    /// A request failed on the disk after it was logged: the replica would get what the guest was told is not there.
    /// The range is compared again.
    pub(crate) fn note_disk_failure(&mut self, offset: u64, length_bytes: u64) {
        self.tracking.change(offset, length_bytes);
        self.owe_resync(ResyncReason::DiskWriteFailed);
    }

    /// Keeps the first reason there is.
    pub(crate) fn owe_resync(&mut self, reason: ResyncReason) {
        let known = &mut self.tracking.header.reason;
        if known.is_none() {
            *known = Some(reason);
            self.tracking.write_header();
        }
    }

    /// All at once: making room for one must not clean the regions of another that is not written yet.
    fn make_active(&mut self, appends: &[Append<'_>]) {
        let active = |order: &mut Self, append: &Append<'_>| {
            order.tracking.active.touch(append.offset, append.length_bytes)
        };
        while !appends.iter().all(|append| active(self, append)) {
            let ranges: Vec<_> = appends.iter().map(|append| (append.offset, append.length_bytes)).collect();
            match self.tracking.active.missing(&ranges) {
                Some(missing) => self.tracking.activate(&missing),
                None => self.make_room(),
            }
        }
    }

    /// Makes everything written so far durable in log and map, and cleans all regions: for a write that finds the
    /// bound reached. Flushes and cuts clean before it comes to that.
    fn make_room(&mut self) {
        let synced = self.log.as_mut().map_or(Ok(()), |log| {
            log.writer.checkpoint()?;
            log.writer.sync()
        });
        if let Err(e) = synced {
            self.give_up_log(reason_of(&e));
        }
        let unsafe_logs: Vec<SparseBits> =
            self.sealing.iter().filter(|s| s.sync().is_err()).map(|s| s.ranges.clone()).collect();
        for ranges in unsafe_logs {
            self.tracking.change_bits(&ranges);
            self.give_up_log(ResyncReason::LogWriteFailed);
        }
        self.tracking.sync();
        let epoch = self.tracking.active.end_epoch();
        self.tracking.clean(epoch);
    }

    /// Ends logging: the ranges of the open log go to the changed map, and so does what is written from now on.
    pub(crate) fn give_up_log(&mut self, reason: ResyncReason) {
        let ranges = std::mem::take(&mut self.in_log);
        self.tracking.change_bits(&ranges);
        let gone = [self.log.take(), self.next.take()];
        self.given_up.extend(gone.iter().flatten().map(|log| log.number));
        // Until the disk is synced, a flush that the guest was answered may rest on the log alone.
        self.is_unlogged_dirty = true;
        let header = &mut self.tracking.header;
        header.mode = Mode::Map;
        header.reason = Some(header.reason.unwrap_or(reason));
        self.tracking.write_header();
    }

    /// Puts the prepared log in the place of the open one. False when there is none; an empty log stays.
    pub(crate) fn swap(&mut self, cut_time_ns: u64) -> bool {
        let Some(log) = self.log.as_mut().filter(|log| log.writer.entry_count() > 0) else { return true };
        let Some(next) = self.next.take() else { return false };
        self.rotation_not_before_bytes = 0;
        let old = std::mem::replace(log, next);
        self.sealing.push(Sealing {
            number: old.number,
            log: old.writer.log_file().clone(),
            index: old.writer.index_file().clone(),
            ranges: std::mem::take(&mut self.in_log),
            open: Some(old),
            cut_time_ns,
        });
        true
    }

    /// Whether the open log is due to be rotated without a cut, and a next one is there.
    pub(crate) fn is_rotation_due(&self, options: &TrackOptions) -> bool {
        self.log.as_ref().is_some_and(|log| {
            let size_bytes = log.writer.log_size_bytes();
            size_bytes >= self.rotation_not_before_bytes
                && (log.writer.entry_count() >= options.entry_count_max
                    || size_bytes >= options.log_size_bytes_max)
        })
    }

    /// No next log is there: where none can be made, not every write shall try.
    pub(crate) fn put_off_rotation(&mut self) {
        let size_bytes = self.log.as_ref().map_or(0, |log| log.writer.log_size_bytes());
        self.rotation_not_before_bytes = size_bytes + ROTATION_RETRY_BYTES;
    }

    /// The disk has shrunk: what is known of chunks behind its end is forgotten, as the maps have no place for it.
    pub(crate) fn forget_behind(&mut self, chunk_count: u64) {
        self.written.truncate(chunk_count);
        self.in_log.truncate(chunk_count);
        self.unreleased.truncate(chunk_count);
        self.sealing.iter_mut().for_each(|sealing| sealing.ranges.truncate(chunk_count));
    }

    /// One past the newest sequence number.
    pub(crate) fn next_sequence(&self) -> u64 {
        let given = self.log.as_ref().map(|log| log.writer.next_sequence());
        given.unwrap_or(self.tracking.header.next_number << SEQUENCE_BITS)
    }
}

impl OpenLog {
    fn append(&mut self, appends: &[Append<'_>]) -> Result<(), HrlError> {
        if self.writer.entry_count() >= ENTRIES_HARD_MAX {
            let reason = format!("{ENTRIES_HARD_MAX} entries and no next log");
            let place = secondsite_hrl::Place { path: self.path.clone(), offset: 0, reason };
            return Err(HrlError::LimitExceeded(place));
        }
        self.writer.append(appends)
    }
}

impl Sealing {
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        use secondsite_hrl::LogFile;
        self.log.sync_data()?;
        self.index.sync_data()
    }
}

/// The reason for a resynchronization that an error of a log gives.
pub(crate) fn reason_of(error: &HrlError) -> ResyncReason {
    match error {
        e if e.is_disk_full() => ResyncReason::LogDiskFull,
        HrlError::WriteFailed(..) | HrlError::WriterFailed(_) | HrlError::LimitExceeded(_) => {
            ResyncReason::LogWriteFailed
        }
        HrlError::ChainGap(_) | HrlError::ChainFork(_) => ResyncReason::ChainBroken,
        _ => ResyncReason::LogDamaged,
    }
}
