//! Sealed logs that wait until the replica has them: release, and coalescing of neighbours.

use secondsite_hrl::{LogId, LogOptions, coalesce_plan, index_path};

use super::disk::TrackedDisk;
use super::files::file_error;
use super::scan::describe_file;
use super::state::QueuedLog;
use crate::error::{DiskError, Place, Result};

/// Coalescing that saves less is not worth its reading and writing.
const SAVED_PERCENT_MIN: u32 = 10;

impl TrackedDisk {
    /// Deletes logs that the replica holds. The disk is flushed first: until then a power loss would need them.
    ///
    /// Ids that are not there are passed over, so a repetition is safe.
    ///
    /// # Errors
    /// OPTION_OUT_OF_RANGE when an older log would stay; DISK_SYNC_FAILED; LOG_WRITE_FAILED.
    pub fn release_logs(&self, ids: &[LogId]) -> Result<()> {
        let _slow = self.housekeeping.lock();
        let queue = self.queue.lock().clone();
        let count = queue.iter().take_while(|log| ids.contains(&log.sealed.id)).count();
        if queue[count..].iter().any(|log| ids.contains(&log.sealed.id)) {
            return Err(self.refuse("an older log is not released yet"));
        }
        let Some(last) = queue[..count].last() else { return Ok(()) };
        self.device.flush()?;
        self.options.step("release-synced");
        {
            let mut order = self.order.lock();
            let header = &mut order.tracking.header;
            header.floor_sequence = header.floor_sequence.max(last.sealed.next_sequence);
            let next = self.number_of(last).map_or(header.first_number, |number| number + 1);
            header.first_number = header.first_number.max(next);
            let first_number = header.first_number;
            order.unreleased.release_through(first_number.saturating_sub(1));
            order.tracking.write_header();
        }
        self.sync_tracking();
        self.options.step("release-noted");
        self.queue.lock().drain(..count);
        for log in &queue[..count] {
            self.retire_log(log)?;
            self.options.step("released-one");
        }
        Ok(())
    }

    /// Makes one log of consecutive ones: of overlapping writes only the last bytes stay. It takes the place of all of
    /// them in the chain (id of the last, predecessor of the first). `None` when that saves less than 10 %.
    ///
    /// # Errors
    /// OPTION_OUT_OF_RANGE when the logs are not consecutive; DISK_SYNC_FAILED; those of [`secondsite_hrl::coalesce`].
    pub fn coalesce_logs(&self, ids: &[LogId]) -> Result<Option<QueuedLog>> {
        let _slow = self.housekeeping.lock();
        let queue = self.queue.lock().clone();
        let start = queue.iter().position(|log| Some(&log.sealed.id) == ids.first());
        let inputs = start.and_then(|start| queue.get(start..start + ids.len()));
        let Some(inputs) = inputs.filter(|logs| logs.iter().map(|log| &log.sealed.id).eq(ids)) else {
            return Err(self.refuse("the logs to coalesce are not consecutive"));
        };
        let ([first, _, ..], Some(last)) = (inputs, inputs.last()) else { return Ok(None) };
        let paths: Vec<_> = inputs.iter().map(|log| log.path.as_path()).collect();
        let plan = coalesce_plan(&paths)?;
        if plan.saved_percent() < SAVED_PERCENT_MIN {
            return Ok(None);
        }
        // Entries get new, lower sequence numbers, so none of them may be needed for a redo any more.
        self.device.flush()?;
        self.raise_floor(last.sealed.next_sequence);
        let temporary = last.path.with_extension(TEMPORARY);
        self.remove_log(&temporary)?;
        let mut key = [0; 32];
        (self.options.random)(&mut key);
        let options = LogOptions {
            id: last.sealed.id,
            previous_id: first.sealed.previous_id,
            disk_id: self.options.disk_id,
            created_ns: self.options.now(),
            first_sequence: first.sealed.first_sequence,
            key,
            keep_space: false,
        };
        plan.write(&temporary, options, last.cut_time_ns)?;
        self.options.step("coalesced");
        self.put_in_place(&temporary, &last.path)?;
        let sealed = describe_file(&last.path, self.options.disk_id)?;
        let merged = QueuedLog { path: last.path.clone(), sealed, cut_time_ns: last.cut_time_ns };
        let start = start.unwrap_or(0); // `inputs` exists, so `start` does.
        self.queue.lock().splice(start..start + ids.len(), [merged.clone()]);
        for log in &inputs[..inputs.len() - 1] {
            self.remove_log(&log.path)?;
            self.options.step("coalesced-one-removed");
        }
        Ok(Some(merged))
    }

    /// The index first: an open that finds the temporary log without its index goes on from there.
    fn put_in_place(&self, temporary: &std::path::Path, path: &std::path::Path) -> Result<()> {
        let files = &self.options.files;
        let renamed = files.rename(&index_path(temporary), &index_path(path));
        renamed
            .and_then(|()| files.sync_folder(&self.names.folder))
            .map_err(|e| file_error(path, "rename", e))?;
        self.options.step("coalesced-index-renamed");
        let renamed = files.rename(temporary, path);
        renamed
            .and_then(|()| files.sync_folder(&self.names.folder))
            .map_err(|e| file_error(path, "rename", e))?;
        self.options.step("coalesced-renamed");
        Ok(())
    }

    fn refuse(&self, reason: &str) -> DiskError {
        DiskError::InvalidRequest(Place::whole(self.device.path()), reason.into())
    }
}

/// Extension of a coalesced log that is not in its place yet.
pub(crate) const TEMPORARY: &str = "coalesced.hrl";
