//! The tracked disk as a block device: one order for log and disk, and the flush that concurrent callers share.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use secondsite_hrl::{HrlError, LogFile};

use super::batch::{BatchAction, BatchRequest};
use super::files::{File, Names};
use super::flights::OrderLock;
use super::options::{FlushMode, TrackOptions};
use super::order::{Order, reason_of};
use super::state::{QueuedLog, ResyncReason, TrackedStatus};
use crate::device::{BlockDevice, Extent};
use crate::error::{DiskError, Place, Result};

/// A disk whose every write is in a log, or in the changed map.
///
/// Dropping it without [`close`](Self::close) is what the death of a process is to it.
pub struct TrackedDisk {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) options: TrackOptions,
    pub(crate) names: Names,
    pub(crate) order: OrderLock,
    pub(crate) queue: Mutex<Vec<QueuedLog>>,
    /// Held by one slow operation at a time: cut, release, fold, resync, close.
    pub(crate) housekeeping: Mutex<()>,
    /// Files of released logs, to be written again.
    pub(crate) spares: Mutex<Vec<PathBuf>>,
    gate: FlushGate,
    piece_bytes_max: u64,
    regions_max: u64,
    is_rotating: AtomicBool,
    pub(crate) is_closed: AtomicBool,
    me: Weak<TrackedDisk>,
    /// As far as the tracking file knows; the device may be larger for a moment.
    pub(crate) size_bytes: AtomicU64,
    /// Of the tracking file, and of those that took its place.
    pub(crate) locks: Mutex<Vec<Box<dyn Send + Sync>>>,
}

impl TrackedDisk {
    pub(crate) fn assemble(
        device: Arc<dyn BlockDevice>,
        options: TrackOptions,
        names: Names,
        order: Order,
        queue: Vec<QueuedLog>,
        locks: Vec<Box<dyn Send + Sync>>,
    ) -> Arc<Self> {
        let size_bytes = AtomicU64::new(order.tracking.header.disk_size_bytes);
        Arc::new_cyclic(|me| Self {
            device,
            options,
            names,
            piece_bytes_max: order.tracking.active.piece_bytes_max(),
            regions_max: order.tracking.active.count_max(),
            order: OrderLock::new(order),
            queue: Mutex::new(queue),
            housekeeping: Mutex::new(()),
            spares: Mutex::default(),
            gate: FlushGate::default(),
            is_rotating: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            me: me.clone(),
            locks: Mutex::new(locks),
            size_bytes,
        })
    }

    /// Counters, one snapshot.
    pub fn status(&self) -> TrackedStatus {
        let (sealed_bytes, sealed_count) = {
            let queue = self.queue.lock();
            let bytes = queue.iter().map(|log| log.sealed.log_size_bytes + log.sealed.index_size_bytes);
            (bytes.sum::<u64>(), queue.len() as u64)
        };
        let order = self.order.lock();
        let (tracking, header) = (&order.tracking, &order.tracking.header);
        let open_bytes = order.log.as_ref().filter(|log| log.writer.entry_count() > 0);
        let open_bytes =
            open_bytes.map_or(0, |log| log.writer.log_size_bytes() + log.writer.entry_count() * 64);
        let chunks = tracking.changed().count() + tracking.candidates().count();
        let all = tracking.chunk_count();
        TrackedStatus {
            mode: header.mode,
            resync_reason: header.reason,
            is_whole_disk_unknown: tracking.changed().count() == all || tracking.candidates().count() == all,
            write_count: order.write_count,
            written_bytes: order.written_bytes,
            unreleased_log_bytes: sealed_bytes + open_bytes,
            unreleased_log_count: sealed_count,
            changed_bytes: (chunks * super::CHUNK_BYTES).min(self.size_bytes()),
            active_region_count: tracking.active.len() as u64,
            last_hold_ns: order.last_hold_ns,
            max_hold_ns: order.max_hold_ns,
        }
    }

    /// Sealed logs that were not released, in the order of their chain.
    pub fn unreleased_logs(&self) -> Vec<QueuedLog> {
        self.queue.lock().clone()
    }

    /// The disk.
    pub fn disk_id(&self) -> [u8; 16] {
        self.options.disk_id
    }

    /// Longest piece of a request that the regions always have room for.
    pub(crate) fn piece_bytes_max(&self) -> u64 {
        self.piece_bytes_max
    }

    /// Most regions that one step may touch.
    pub(crate) fn regions_max(&self) -> u64 {
        self.regions_max
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(DiskError::Busy(Place::whole(self.device.path()), "it is closed".into()));
        }
        Ok(())
    }

    /// Rotates a log that has grown too long; the rest of the work is another thread's.
    pub(crate) fn rotate_when_due(&self, now: u64) {
        let mut order = self.order.lock();
        if !order.is_rotation_due(&self.options) {
            return;
        }
        // Without a prepared log the open one grows on; the thread prepares one.
        if !order.swap(now) {
            order.put_off_rotation();
        }
        if let Some(disk) = self.me.upgrade().filter(|_| !self.is_rotating.swap(true, Ordering::AcqRel)) {
            std::thread::spawn(move || disk.rotate());
        }
    }

    /// Seals what was swapped out and prepares the next log, until nothing is left to seal and the open one is short
    /// again: both may change while a log is being made, and nobody may write for a while after that.
    fn rotate(&self) {
        let _slow = self.housekeeping.lock();
        loop {
            if !self.is_closed.load(Ordering::Acquire) {
                self.seal_swapped();
                self.prepare_or_wait();
            }
            self.options.step("prepared");
            let mut order = self.order.lock();
            let is_closed = self.is_closed.load(Ordering::Acquire);
            let is_left = order.sealing.iter().any(|sealing| sealing.open.is_some());
            let is_due = order.next.is_some() && order.is_rotation_due(&self.options);
            if is_closed || !(is_left || is_due) {
                // Under the order lock: a writer that finds the log too long after this starts the next thread.
                self.is_rotating.store(false, Ordering::Release);
                return;
            }
            if is_due {
                order.swap(self.options.now());
            }
        }
    }

    fn flush_once(&self) -> Result<()> {
        let plan = self.plan_flush();
        if plan.needs_disk {
            // The medium takes the disk's pages while the log is waited for.
            self.device.start_writeback(0, self.size_bytes());
        }
        let logs_durable = plan.sync_logs();
        self.options.step("log-synced");
        if let Err(e) = &logs_durable {
            self.order.lock().give_up_log(reason_of(e));
        }
        if plan.needs_disk || logs_durable.is_err() {
            self.device.flush()?;
        }
        self.options.step("disk-synced");
        self.after_flush(&plan, logs_durable.is_ok());
        Ok(())
    }

    /// Writes the metadata block behind the data and notes what has to be synced.
    fn plan_flush(&self) -> FlushPlan {
        let mut order = self.order.lock();
        if let Some(Err(e)) = order.log.as_mut().map(|log| log.writer.checkpoint()) {
            order.give_up_log(reason_of(&e));
        }
        let mut files: Vec<File> =
            order.sealing.iter().flat_map(|s| [s.log.clone(), s.index.clone()]).collect();
        files.extend(order.log.as_ref().map(|log| log.writer.log_file().clone()));
        let position = order.log.as_ref().map(|log| (log.number, log.writer.log_size_bytes()));
        let needs_disk =
            self.options.flush_mode == FlushMode::Disk || order.log.is_none() || order.is_unlogged_dirty;
        let was_unlogged = std::mem::take(&mut order.is_unlogged_dirty);
        let epoch = order.tracking.active.end_epoch();
        FlushPlan { files, position, needs_disk, was_unlogged, epoch, next_sequence: order.next_sequence() }
    }

    fn after_flush(&self, plan: &FlushPlan, are_logs_durable: bool) {
        let mut order = self.order.lock();
        if let Some((number, position)) = plan.position
            && are_logs_durable
            && let Some(log) = order.log.as_mut().filter(|log| log.number == number)
        {
            log.writer.note_durable(position);
        }
        if plan.needs_disk || !are_logs_durable {
            let header = &mut order.tracking.header;
            header.floor_sequence = header.floor_sequence.max(plan.next_sequence);
        }
        // What no log holds was overwritten perhaps by an entry below: that entry must never be redone over it.
        let must_keep_floor = plan.was_unlogged || !are_logs_durable;
        if must_keep_floor {
            order.tracking.write_header();
            order.tracking.sync();
        }
        if order.tracking.active.is_crowded() && are_logs_durable {
            order.tracking.clean(plan.epoch);
        }
    }
}

struct FlushPlan {
    files: Vec<File>,
    position: Option<(u64, u64)>,
    needs_disk: bool,
    was_unlogged: bool,
    epoch: u64,
    next_sequence: u64,
}

impl FlushPlan {
    fn sync_logs(&self) -> std::result::Result<(), HrlError> {
        self.files.iter().try_for_each(|file| {
            file.sync_data().map_err(|e| {
                let reason = format!("sync: {e}");
                HrlError::WriteFailed(
                    secondsite_hrl::Place { path: file.path().to_path_buf(), offset: 0, reason },
                    e,
                )
            })
        })
    }
}

impl BlockDevice for TrackedDisk {
    fn path(&self) -> &Path {
        self.device.path()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn sector_size_bytes(&self) -> u32 {
        self.device.sector_size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.device.read_cached(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_one(offset, BatchAction::Write(data))
    }

    fn write_vectored_at(&self, offset: u64, slices: &[IoSlice<'_>]) -> Result<()> {
        let mut at = offset;
        let requests: Vec<_> = slices
            .iter()
            .map(|slice| {
                at += slice.len() as u64;
                BatchRequest::new(at - slice.len() as u64, BatchAction::Write(slice))
            })
            .collect();
        self.write_batch(&requests).into_iter().collect()
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.write_one(offset, BatchAction::WriteZeroes { length_bytes, may_unmap })
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_one(offset, BatchAction::Discard { length_bytes })
    }

    fn flush(&self) -> Result<()> {
        self.gate.run(|| self.flush_once(), || DiskError::SyncFailed(Place::whole(self.device.path())))
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.device.extent_at(offset, end)
    }
}

/// Lets concurrent flushes share one: who waits needs a flush that began after it asked.
#[derive(Default)]
struct FlushGate {
    state: Mutex<GateState>,
    ended: Condvar,
}

#[derive(Default)]
struct GateState {
    started: u64,
    finished: u64,
    newest_failed: u64,
    is_running: bool,
}

impl FlushGate {
    fn run(&self, flush: impl FnOnce() -> Result<()>, failed: impl FnOnce() -> DiskError) -> Result<()> {
        let mut state = self.state.lock();
        let wanted = state.started + 1;
        while state.is_running && state.finished < wanted {
            self.ended.wait(&mut state);
        }
        if state.finished >= wanted {
            return if state.newest_failed >= wanted { Err(failed()) } else { Ok(()) };
        }
        state.is_running = true;
        state.started += 1;
        let number = state.started;
        drop(state);
        let mut leave = Leave { gate: self, number, is_ok: false };
        let result = flush();
        leave.is_ok = result.is_ok();
        result
    }
}

/// Ends the turn, also when the flush panics.
struct Leave<'g> {
    gate: &'g FlushGate,
    number: u64,
    is_ok: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.is_running = false;
        state.finished = self.number;
        if !self.is_ok {
            state.newest_failed = self.number;
        }
        self.gate.ended.notify_all();
    }
}

impl TrackedDisk {
    /// Marks the whole disk, or what is marked already, as to be compared.
    pub(crate) fn owe(&self, reason: ResyncReason) {
        self.order.lock().owe_resync(reason);
    }
}
