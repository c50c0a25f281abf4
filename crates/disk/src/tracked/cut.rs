//! A cut: the logs of several disks are swapped for prepared ones at one instant; all else happens outside of it.
//!
//! The order locks of all disks are taken in the order of their ids, so two cuts cannot wait for each other. Under
//! them nothing is created, synced or deleted. A log without entries is not swapped: its disk stands at the cut
//! already, and no file is made for nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use secondsite_hrl::{LogId, LogOptions, LogWriter};

use super::disk::TrackedDisk;
use super::files::{File, TrackedFile, file_error};
use super::order::{OpenLog, Order, SEQUENCE_BITS, Sealing, reason_of};
use super::spares::recycle;
use super::state::QueuedLog;
use crate::error::{DiskError, Place, Result};

/// Attempts to find all disks with a prepared log: a log rotated in between takes one away.
const ATTEMPTS_MAX: usize = 8;

/// Cuts the logs of several disks at one instant, and seals them. Returns the time of the cut, Unix nanoseconds.
///
/// A disk in mode `Map` takes no part. When sealing fails, the disk goes to mode `Map`: see its status.
///
/// # Errors
/// LOG_WRITE_FAILED when no next log can be made; nothing is cut then.
pub fn cut(disks: &[Arc<TrackedDisk>]) -> Result<u64> {
    let mut sorted: Vec<&Arc<TrackedDisk>> = disks.iter().collect();
    sorted.sort_by_key(|disk| (disk.disk_id(), Arc::as_ptr(disk).addr()));
    sorted.dedup_by(|a, b| Arc::ptr_eq(a, b));
    let _slow: Vec<_> = sorted.iter().map(|disk| disk.housekeeping.lock()).collect();
    let time = swap_all(&sorted)?;
    for disk in sorted {
        disk.options.step("swapped");
        disk.seal_swapped();
        disk.prepare_or_wait();
    }
    Ok(time)
}

fn swap_all(disks: &[&Arc<TrackedDisk>]) -> Result<u64> {
    for _ in 0..ATTEMPTS_MAX {
        disks.iter().try_for_each(|disk| disk.prepare())?;
        let mut orders: Vec<_> = disks.iter().map(|disk| disk.order.lock()).collect();
        let began = Instant::now();
        if !orders.iter().all(|order| order.can_swap()) {
            continue;
        }
        let time = disks.first().map_or(0, |disk| disk.options.now());
        for order in &mut orders {
            order.swap(time);
            order.written = Default::default();
        }
        let hold_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        for order in &mut orders {
            order.last_hold_ns = hold_ns;
            order.max_hold_ns = order.max_hold_ns.max(hold_ns);
        }
        return Ok(time);
    }
    let path = disks.first().map_or_else(Default::default, |disk| disk.device.path().to_path_buf());
    Err(DiskError::Busy(Place::whole(&path), "its logs fill faster than new ones are made".into()))
}

impl Order {
    fn can_swap(&self) -> bool {
        self.next.is_some() || self.log.as_ref().is_none_or(|log| log.writer.entry_count() == 0)
    }
}

impl TrackedDisk {
    /// Makes the next log, unless there is one or the map is in use.
    pub(crate) fn prepare(&self) -> Result<()> {
        let previous_id = {
            let order = self.order.lock();
            match &order.log {
                Some(log) if order.next.is_none() => log.writer.id(),
                _ => return Ok(()),
            }
        };
        let next = self.create_log(previous_id)?;
        let mut order = self.order.lock();
        // The open log may have been given up, or rotated by nobody else: housekeeping is ours.
        match &order.log {
            Some(log) if log.writer.id() == previous_id => {
                order.next = Some(next);
                order.rotation_not_before_bytes = 0;
            }
            _ => order.given_up.push(next.number),
        }
        Ok(())
    }

    /// As [`prepare`](Self::prepare); a failure is met again, and reported, by the next cut.
    pub(crate) fn prepare_or_wait(&self) {
        let _ = self.prepare();
    }

    /// Creates an empty log; it and its name are durable, and its number is not given again.
    pub(crate) fn create_log(&self, previous_id: LogId) -> Result<OpenLog> {
        let number = {
            let mut order = self.order.lock();
            order.tracking.header.next_number += 1;
            order.tracking.write_header();
            order.tracking.header.next_number - 1
        };
        self.options.step("numbered");
        let log = new_log(&self.options, &self.names, number, previous_id, self.take_spare())?;
        self.sync_tracking();
        Ok(log)
    }

    /// Syncs the tracking file without holding the order lock.
    pub(crate) fn sync_tracking(&self) {
        let (file, copy) = {
            let order = self.order.lock();
            (order.tracking.file(), order.tracking.written_copy())
        };
        let synced = file.sync_data();
        self.order.lock().tracking.note_synced(copy, synced);
    }

    /// Seals what was swapped out, in order. What cannot be sealed, and all that follows it, goes to the map.
    pub(crate) fn seal_swapped(&self) {
        loop {
            let (log, cut_time_ns) = {
                let mut order = self.order.lock();
                let Some(first) = order.sealing.first_mut() else { return };
                let cut_time_ns = first.cut_time_ns;
                match first.open.take() {
                    Some(log) => (log, cut_time_ns),
                    None => {
                        order.sealing.remove(0);
                        continue;
                    }
                }
            };
            let (number, path) = (log.number, log.path);
            match log.writer.seal(cut_time_ns) {
                Ok(sealed) => {
                    self.options.step("sealed");
                    self.enqueue(number, QueuedLog { path, sealed, cut_time_ns });
                }
                Err(e) => self.give_up_from(number, reason_of(&e)),
            }
        }
    }

    fn enqueue(&self, number: u64, log: QueuedLog) {
        let id = log.sealed.id;
        self.queue.lock().push(log);
        let mut order = self.order.lock();
        if let Some(at) = order.sealing.iter().position(|sealing| sealing.number == number) {
            let sealed = order.sealing.remove(at);
            order.unreleased.insert(number, sealed.ranges);
        }
        order.tracking.header.last_id = id;
        order.tracking.write_header();
        if order.log.is_some() && order.tracking.active.is_crowded() {
            drop(order);
            self.clean_regions();
        }
    }

    /// The sealed log is durable: one flush more of the open one, and all regions written before can be cleaned.
    fn clean_regions(&self) {
        use crate::device::BlockDevice;
        let _ = self.flush(); // A failure is kept by the device and met by the guest's own flush.
    }

    fn give_up_from(&self, number: u64, reason: super::state::ResyncReason) {
        let mut order = self.order.lock();
        let (lost, kept): (Vec<Sealing>, Vec<Sealing>) =
            std::mem::take(&mut order.sealing).into_iter().partition(|sealing| sealing.number >= number);
        order.sealing = kept;
        for sealing in lost {
            order.tracking.change_bits(&sealing.ranges);
            order.given_up.push(sealing.number);
        }
        order.give_up_log(reason);
    }
}

/// Creates the files of a log, out of a spare where there is one, and makes their names durable.
pub(crate) fn new_log(
    options: &super::TrackOptions,
    names: &super::files::Names,
    number: u64,
    previous_id: LogId,
    spare: Option<PathBuf>,
) -> Result<OpenLog> {
    let path = names.log(number);
    let made = write_new(options, &path, log_options(options, number, previous_id), spare).and_then(|log| {
        let synced = options.files.sync_folder(&names.folder);
        synced.map_err(|e| file_error(&names.folder, "sync the folder", e))?;
        Ok(log)
    });
    match made {
        Ok(writer) => Ok(OpenLog { number, path, writer }),
        Err(e) => {
            // The error is the one to report; an empty file left behind is swept at the next open.
            let _ = options.files.remove(&path).and(options.files.remove(&secondsite_hrl::index_path(&path)));
            Err(e)
        }
    }
}

fn write_new(
    options: &super::TrackOptions,
    path: &Path,
    log_options: LogOptions,
    spare: Option<PathBuf>,
) -> Result<LogWriter<File>> {
    if let Some(spare) = spare {
        if let Ok(writer) = recycle(options, &spare, path, log_options.clone()) {
            return Ok(writer);
        }
        let _ = options.files.remove(&spare); // A fresh file may do better; if not, its error is the one to report.
    }
    let open = |path: &Path| {
        let fault = options.log_fault.clone();
        let failed = fault.as_ref().and_then(|fault| fault("create")).map_or(Ok(()), Err);
        let file =
            failed.and_then(|()| options.files.create(path)).map_err(|e| file_error(path, "create", e))?;
        Ok::<_, DiskError>(Arc::new(TrackedFile::new(file, fault)))
    };
    let log = open(path)?;
    let index = open(&secondsite_hrl::index_path(path))?;
    Ok(LogWriter::create(log, index, log_options)?)
}

fn log_options(options: &super::TrackOptions, number: u64, previous_id: LogId) -> LogOptions {
    let (mut id, mut key) = ([0; 16], [0; 32]);
    (options.random)(&mut id);
    (options.random)(&mut key);
    LogOptions {
        id: LogId(id),
        previous_id,
        disk_id: options.disk_id,
        created_ns: options.now(),
        first_sequence: number << SEQUENCE_BITS,
        key,
        keep_space: false,
    }
}
