//! Resynchronization, as far as the tracked disk has a part in it: what has to be compared, and since when.
//!
//! `begin_resync` is an exact cut: everything not in a log from there on is a candidate. It gives up all logs that were
//! not released (their ranges go to the map), makes the map the candidates, and starts a new chain of logs, whose first
//! follows none. Nothing is forgotten before what replaces it is durable, so a crash anywhere leaves more candidates, never
//! fewer.

use std::sync::Arc;

use super::bits::SparseBits;
use super::disk::TrackedDisk;
use super::file::CHUNK_BYTES;
use super::state::{Mode, QueuedLog, ResyncReason};
use crate::device::BlockDevice;
use crate::error::Result;
use secondsite_hrl::{LogId, index_path};

impl TrackedDisk {
    /// Puts the ranges of all unreleased logs, the open one too, into the changed map, durably, and deletes the logs.
    /// Tracking goes on in the map.
    ///
    /// # Errors
    /// DISK_SYNC_FAILED: the logs are kept then; the map holds their ranges already.
    pub fn fold_logs_to_map(&self, reason: ResyncReason) -> Result<()> {
        let _slow = self.housekeeping.lock();
        self.fold(reason)
    }

    fn fold(&self, reason: ResyncReason) -> Result<()> {
        let queue = self.queue.lock().clone();
        {
            let mut order = self.order.lock();
            // Known since they were written, or read and checked at the open: no log has to be readable for it.
            let ranges = order.unreleased.all();
            order.tracking.change_bits(&ranges);
            order.give_up_log(reason);
            for sealing in std::mem::take(&mut order.sealing) {
                order.tracking.change_bits(&sealing.ranges);
                order.given_up.push(sealing.number);
            }
            self.options.step("folded");
            order.tracking.header.first_number = order.tracking.header.next_number;
            order.tracking.write_header();
            let numbers = queue.iter().filter_map(|log| self.number_of(log));
            order.given_up.extend(numbers);
            order.unreleased.release_through(u64::MAX); // It is in the map now.
        }
        self.queue.lock().clear();
        self.sync_tracking();
        self.options.step("fold-durable");
        self.sweep()
    }

    /// Begins a resynchronization, or begins it anew: the candidates are those of before, what the map holds, and what
    /// unreleased logs hold.
    ///
    /// # Errors
    /// LOG_WRITE_FAILED when no new log can be made, DISK_SYNC_FAILED: tracking then goes on in the map.
    pub fn begin_resync(&self) -> Result<()> {
        let _slow = self.housekeeping.lock();
        self.fold(ResyncReason::AskedFor)?;
        // The replica may have none of the logs that were folded, so the new chain follows none of them.
        let log = self.create_log(LogId::NONE)?;
        self.options.step("resync-log-made");
        let taken = {
            let mut order = self.order.lock();
            order.tracking.add_changed_to_candidates();
            order.written = SparseBits::default();
            order.in_log = SparseBits::default();
            order.tracking.header.mode = Mode::Logging;
            order.tracking.header.last_id = log.writer.id();
            order.tracking.header.first_number = log.number;
            order.log = Some(log);
            order.tracking.write_header();
            order.tracking.changed().clone()
        };
        self.options.step("resync-started");
        // What is compared must not vanish with the power after the replica has it: from here on the log sees to that,
        // and what the map alone knew is made durable now.
        self.device.flush()?;
        self.sync_tracking();
        self.options.step("candidates-durable");
        self.order.lock().tracking.forget_changed(&taken);
        self.prepare_or_wait();
        Ok(())
    }

    /// The candidates inside a window of the disk, ascending: offset and length, multiples of 64 KiB but for the ends
    /// of window and disk.
    pub fn candidates(&self, offset: u64, length_bytes: u64) -> Vec<(u64, u64)> {
        let order = self.order.lock();
        clip(order.tracking.candidates(), offset, length_bytes.min(self.size_bytes().saturating_sub(offset)))
    }

    /// What was written inside a window since the last cut, as [`candidates`](Self::candidates). In mode `Map` the
    /// changed map is part of it.
    pub fn written_since_cut(&self, offset: u64, length_bytes: u64) -> Vec<(u64, u64)> {
        let order = self.order.lock();
        let length_bytes = length_bytes.min(self.size_bytes().saturating_sub(offset));
        let chunks = order.tracking.chunks(offset, length_bytes);
        let mut bits = SparseBits::default();
        for map in [&order.written, order.tracking.changed()] {
            map.runs_in(chunks.clone()).into_iter().for_each(|run| bits.set(run, |_| ()));
        }
        clip(&bits, offset, length_bytes)
    }

    /// Ends a resynchronization: its candidates are equal on both sides.
    ///
    /// # Errors
    /// LOG_WRITE_FAILED of the tracking file.
    pub fn finish_resync(&self) -> Result<()> {
        let _slow = self.housekeeping.lock();
        {
            let mut order = self.order.lock();
            order.tracking.forget_candidates();
            if order.tracking.changed().is_empty() && order.log.is_some() {
                order.tracking.header.reason = None;
            }
            order.tracking.write_header();
        }
        self.options.step("resync-finished");
        self.sync_tracking();
        self.check_tracking()
    }

    /// Remembers that a resynchronization is owed; with `whole_disk` nothing is known about what differs.
    ///
    /// # Errors
    /// LOG_WRITE_FAILED of the tracking file.
    pub fn require_resync(&self, reason: ResyncReason, whole_disk: bool) -> Result<()> {
        if whole_disk {
            self.order.lock().tracking.change_all();
        }
        self.owe(reason);
        self.sync_tracking();
        self.check_tracking()
    }

    /// Remembers that ranges (offset, length) have to be compared, and only they unless more is owed already.
    ///
    /// # Errors
    /// LOG_WRITE_FAILED of the tracking file.
    pub fn require_resync_of(&self, reason: ResyncReason, ranges: &[(u64, u64)]) -> Result<()> {
        {
            let mut order = self.order.lock();
            let mut bits = SparseBits::default();
            for &(offset, length_bytes) in ranges {
                bits.set(order.tracking.chunks(offset, length_bytes), |_| ());
            }
            order.tracking.change_bits(&bits);
        }
        self.owe(reason);
        self.sync_tracking();
        self.check_tracking()
    }

    /// Deletes logs that were given up, once the disk holds durably what they hold.
    pub(crate) fn sweep(&self) -> Result<()> {
        let (numbers, floor) = {
            let mut order = self.order.lock();
            let next_sequence = order.next_sequence();
            (std::mem::take(&mut order.given_up), next_sequence)
        };
        if numbers.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.device.flush() {
            self.order.lock().given_up.extend(numbers);
            return Err(e);
        }
        self.raise_floor(floor);
        self.options.step("swept");
        numbers.iter().try_for_each(|number| self.remove_log(&self.names.log(*number)))
    }

    /// Entries below `floor` are durable on the disk and never redone.
    pub(crate) fn raise_floor(&self, floor: u64) {
        {
            let mut order = self.order.lock();
            let header = &mut order.tracking.header;
            header.floor_sequence = header.floor_sequence.max(floor);
            order.tracking.write_header();
        }
        self.sync_tracking();
    }

    pub(crate) fn remove_log(&self, path: &std::path::Path) -> Result<()> {
        let removed =
            self.options.files.remove(path).and_then(|()| self.options.files.remove(&index_path(path)));
        removed.map_err(|e| super::files::file_error(path, "remove", e))
    }

    pub(crate) fn number_of(&self, log: &QueuedLog) -> Option<u64> {
        self.names.number_of(&log.path.file_name()?.to_string_lossy())
    }

    pub(crate) fn check_tracking(&self) -> Result<()> {
        let order = self.order.lock();
        let Some(e) = order.tracking.failure() else { return Ok(()) };
        let copy = std::io::Error::new(e.kind(), e.to_string());
        Err(super::files::file_error(&self.names.tracking(), "tracking file out of use", copy))
    }
}

/// Runs of chunks as ranges inside of a window.
pub(super) fn clip(bits: &SparseBits, offset: u64, length_bytes: u64) -> Vec<(u64, u64)> {
    let end = offset + length_bytes;
    let chunks = offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
    let ranges = bits.runs_in(chunks).into_iter().filter_map(|run| {
        let (start, stop) = ((run.start * CHUNK_BYTES).max(offset), (run.end * CHUNK_BYTES).min(end));
        (start < stop).then(|| (start, stop - start))
    });
    ranges.collect()
}

const _: fn() = || {
    fn is_sync<T: Send + Sync>() {}
    is_sync::<Arc<TrackedDisk>>();
};
