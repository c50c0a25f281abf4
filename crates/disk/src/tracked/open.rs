//! Opening a tracked disk, whatever it was left like.
//!
//! | left like | what is done |
//! |---|---|
//! | never tracked | a tracking file and a first log are made |
//! | tracked, but the tracking file is gone | a new one, whose first word is that the whole disk is unknown |
//! | closed, disk unchanged | the open log goes on |
//! | closed, disk changed since | as above, and the whole disk is unknown (DISK_MODIFIED_OFFLINE) |
//! | process died | logs swapped out are sealed, the tail of the open log is redone onto the disk, it goes on |
//! | power lost (other boot id) | all logs not known to be on the disk are redone, active regions become changed |
//! | shrunk meanwhile | refused, unless that size was accepted: then the whole disk is unknown (DISK_MODIFIED_OFFLINE) |
//! | log damaged, log missing, tracking file damaged | the good beginning of the chain stays, the rest is set aside as `*.damaged`; the map takes over with the ranges of what was set aside, or the whole disk where they are not known |
//!
//! Before the first write the header durably says "not closed" and names the boot.
//!
//! What cannot be told: writes by others to a disk that was **not** closed, and to a block device, which has no times.

use std::cmp::Ordering;
use std::sync::Arc;

use secondsite_hrl::{HrlError, LogId, Place as LogPlace, index_path};
use xxhash_rust::xxh3::xxh3_64;

use super::bits::SparseBits;
use super::cut::new_log;
use super::dirty::Unreleased;
use super::disk::TrackedDisk;
use super::file::{Loaded, Tracking};
use super::files::{Names, file_error};
use super::header::{DiskStamp, Header};
use super::options::TrackOptions;
use super::order::{OpenLog, Order, SEQUENCE_BITS, reason_of};
use super::queue::TEMPORARY;
use super::resize::resize_if_needed;
use super::scan::log_numbers;
use super::spares::remove_spares;
use super::state::{Mode, Opened, QueuedLog, Recovery, ResyncReason};
use crate::device::BlockDevice;
use crate::error::{DiskError, Place, Result};

impl TrackedDisk {
    /// Opens a disk for tracking and recovers what a crash left.
    ///
    /// # Errors
    /// DISK_IN_USE when another process tracks it; DISK_SIZE_DIFFERS when it was tracked with another size;
    /// OPTION_OUT_OF_RANGE when the tracking file is of another disk; LOG_VERSION_UNSUPPORTED; LOG_WRITE_FAILED when
    /// the tracking file cannot be written; errors of the disk while logs are redone.
    pub fn open(device: Arc<dyn BlockDevice>, options: TrackOptions) -> Result<(Arc<Self>, Opened)> {
        let names = Names::new(&options.tracking_directory, device.path());
        let path = names.tracking();
        let lock = options.files.lock(&path).map_err(|e| file_error(&path, "lock", e))?;
        let lock =
            lock.ok_or_else(|| DiskError::Busy(Place::whole(device.path()), "it is tracked already".into()))?;
        let left_over = names.new_tracking(); // Growth that a crash cut short: the old file counts.
        options.files.remove(&left_over).map_err(|e| file_error(&left_over, "remove", e))?;
        remove_spares(&options, &names)?;
        finish_coalescing(&options, &names)?;
        let mut opening = Opening::start(&*device, &options, &names)?;
        if opening.recovery != Recovery::Created {
            opening.recover_logs()?;
        }
        opening.settle()?;
        let Opening {
            tracking,
            recovery,
            redone_bytes,
            queue,
            open,
            next,
            given_up,
            unused,
            covered,
            unreleased,
            mut locks,
            ..
        } = opening;
        locks.push(lock);
        let mut order = Order::new(tracking, open);
        order.next = next;
        order.given_up = given_up;
        order.written = covered.clone();
        order.in_log = covered;
        order.unreleased = unreleased;
        let disk = Self::assemble(device.clone(), options, names, order, queue, locks);
        disk.check_tracking()?;
        unused.iter().try_for_each(|number| disk.remove_log(&disk.names.log(*number)))?;
        disk.sweep()?;
        disk.prepare_or_wait(); // Nothing to do where the prepared log was found.
        Ok((disk, Opened { recovery, redone_bytes }))
    }
}

pub(super) struct Opening<'o> {
    pub(super) device: &'o dyn BlockDevice,
    pub(super) options: &'o TrackOptions,
    pub(super) names: &'o Names,
    pub(super) numbers: Vec<u64>,
    pub(super) tracking: Tracking,
    pub(super) recovery: Recovery,
    pub(super) redone_bytes: u64,
    pub(super) queue: Vec<QueuedLog>,
    pub(super) open: Option<OpenLog>,
    /// The log prepared for after the open one.
    pub(super) next: Option<OpenLog>,
    pub(super) given_up: Vec<u64>,
    /// Logs without entries: deleted without a sync of the disk.
    pub(super) unused: Vec<u64>,
    /// Chunks of the open log.
    pub(super) covered: SparseBits,
    /// Chunks of the sealed logs.
    pub(super) unreleased: Unreleased,
    /// Of a tracking file that took the place of the old one.
    pub(super) locks: Vec<Box<dyn Send + Sync>>,
}

impl<'o> Opening<'o> {
    fn start(device: &'o dyn BlockDevice, options: &'o TrackOptions, names: &'o Names) -> Result<Self> {
        let numbers = log_numbers(options, names)?;
        let mut locks = Vec::new();
        let path = names.tracking();
        let fail = |e| file_error(&path, "open", e);
        let file = options.files.open(&path).map_err(fail)?;
        let is_new = file.size_bytes().map_err(fail)? == 0;
        let loaded = if is_new { Loaded::Damaged } else { Tracking::load(file.clone()).map_err(fail)? };
        let (tracking, recovery) = match loaded {
            Loaded::Newer => {
                let reason = "written by a later version of this program".to_owned();
                let place = LogPlace { path, offset: 8, reason };
                return Err(DiskError::Log(HrlError::VersionUnsupported(place)));
            }
            Loaded::Whole(tracking) => {
                check_disk(device, options, &tracking.header)?;
                let recovery = recovery_of(&tracking.header, options);
                (resize_if_needed(device, options, names, *tracking, &mut locks)?, recovery)
            }
            Loaded::Damaged => {
                let next_number = numbers.last().map_or(1, |last| last + 1);
                let header = fresh_header(device, options, next_number);
                let tracking = Tracking::create(file, header).map_err(fail)?;
                options.files.sync_folder(&names.folder).map_err(fail)?;
                let is_fresh = is_new && numbers.is_empty() && !options.is_expected;
                (tracking, if is_fresh { Recovery::Created } else { Recovery::ProcessDeath })
            }
        };
        let (given_up, queue, covered) = (Vec::new(), Vec::new(), SparseBits::default());
        let mut opening = Self {
            device,
            options,
            names,
            numbers,
            tracking,
            recovery,
            redone_bytes: 0,
            queue,
            open: None,
            next: None,
            given_up,
            unused: Vec::new(),
            covered,
            unreleased: Unreleased::default(),
            locks,
        };
        opening.tracking.sync();
        opening.tracking.active.limit(options.active_region_count_max);
        if opening.recovery == Recovery::ProcessDeath && opening.tracking.header.generation == 0 {
            // What the tracking file knew is lost, so no log can be trusted to be all there is.
            opening.set_aside_from(0, ResyncReason::LogDamaged, None)?;
        }
        Ok(opening)
    }

    pub(super) fn leave_logging(&mut self, reason: ResyncReason) {
        if let Some(log) = self.open.take() {
            self.tracking.change_bits(&std::mem::take(&mut self.covered));
            self.given_up.push(log.number);
        }
        self.unused.extend(self.next.take().map(|log| log.number));
        self.tracking.header.mode = Mode::Map;
        self.owe(reason);
    }

    pub(super) fn owe(&mut self, reason: ResyncReason) {
        let header = &mut self.tracking.header;
        header.reason = Some(header.reason.unwrap_or(reason));
    }

    /// After recovery: what power loss leaves to compare, an open log, and a header that says "in use".
    fn settle(&mut self) -> Result<()> {
        if self.recovery == Recovery::PowerLoss && self.tracking.active.len() > 0 {
            self.tracking.change_active();
            self.owe(ResyncReason::PowerLoss);
        }
        if matches!(self.recovery, Recovery::PowerLoss | Recovery::Created) {
            // What was redone, or written by others before tracking began, is in no log that could bring it back.
            self.device.flush()?;
        }
        let header = &mut self.tracking.header;
        let newest = self.numbers.last().map_or(0, |last| last + 1);
        header.next_number = header.next_number.max(newest);
        header.is_clean = false;
        header.boot = boot_hash(self.options);
        if let Some(last) = self.queue.last() {
            header.last_id = last.sealed.id;
        }
        if self.recovery == Recovery::PowerLoss {
            header.floor_sequence = header.next_number << SEQUENCE_BITS;
            if let Some(open) = &self.open {
                header.floor_sequence = open.writer.next_sequence();
            }
        }
        if header.mode == Mode::Logging && self.open.is_none() {
            self.first_log();
        }
        self.tracking.write_header();
        self.tracking.sync();
        if self.recovery == Recovery::PowerLoss {
            let epoch = self.tracking.active.end_epoch();
            self.tracking.clean(epoch);
        }
        Ok(())
    }

    /// No space for a log is no reason to refuse the disk.
    fn first_log(&mut self) {
        let header = &mut self.tracking.header;
        let (number, previous_id) = (header.next_number, header.last_id);
        header.next_number += 1;
        match new_log(self.options, self.names, number, previous_id, None) {
            Ok(log) => self.open = Some(log),
            Err(DiskError::Log(e)) => self.leave_logging(reason_of(&e)),
            Err(_) => self.leave_logging(ResyncReason::LogWriteFailed),
        }
    }
}

fn fresh_header(device: &dyn BlockDevice, options: &TrackOptions, next_number: u64) -> Header {
    Header {
        generation: 0,
        disk_id: options.disk_id,
        disk_size_bytes: device.size_bytes(),
        mode: Mode::Logging,
        reason: None,
        is_clean: false,
        stamp: DiskStamp::default(),
        boot: boot_hash(options),
        next_number,
        first_number: 0,
        last_id: LogId::NONE,
        floor_sequence: 0,
    }
}

fn check_disk(device: &dyn BlockDevice, options: &TrackOptions, header: &Header) -> Result<()> {
    let place = Place::whole(device.path());
    if header.disk_id != options.disk_id {
        return Err(DiskError::InvalidRequest(place, "it is tracked under another disk id".into()));
    }
    let (was, is) = (header.disk_size_bytes, device.size_bytes());
    let is_taken = match is.cmp(&was) {
        Ordering::Equal => true,
        Ordering::Greater => options.is_growth_accepted || options.is_growth_deferred,
        Ordering::Less => options.accepted_shrink_bytes == Some(is),
    };
    if !is_taken {
        return Err(DiskError::SizeDiffers(place, format!("tracked with {was} bytes, it has {is} now")));
    }
    Ok(())
}

fn recovery_of(header: &Header, options: &TrackOptions) -> Recovery {
    match header {
        header if header.is_clean => Recovery::Clean,
        header if header.boot == boot_hash(options) => Recovery::ProcessDeath,
        _ => Recovery::PowerLoss,
    }
}

fn boot_hash(options: &TrackOptions) -> u64 {
    xxh3_64(options.boot_id.trim().as_bytes())
}

/// A coalesced log that a crash left outside of its place: without its index it is half in place, so it goes on; with
/// it, nothing has happened yet, and it is dropped.
fn finish_coalescing(options: &TrackOptions, names: &Names) -> Result<()> {
    let fail = |e| file_error(&names.folder, "finish coalescing", e);
    let listed = options.files.names(&names.folder).map_err(fail)?;
    let suffix = format!(".{TEMPORARY}");
    for name in &listed {
        let Some(stem) = name.strip_suffix(&suffix) else { continue };
        let place = format!("{stem}.hrl");
        if names.number_of(&place).is_none() {
            continue;
        }
        let temporary = names.folder.join(name);
        let index = index_path(&temporary);
        if options.files.open(&index).is_ok() {
            options.files.remove(&temporary).and_then(|()| options.files.remove(&index)).map_err(fail)?;
        } else {
            options.files.rename(&temporary, &names.folder.join(place)).map_err(fail)?;
        }
        options.files.sync_folder(&names.folder).map_err(fail)?;
    }
    // An index whose temporary log is gone: the removal above was cut short.
    for name in listed.iter().filter(|name| name.ends_with(".coalesced.hrx")) {
        let log = format!("{}.hrl", name.trim_end_matches(".hrx"));
        let stem = log.trim_end_matches(&suffix).to_owned() + ".hrl";
        if names.number_of(&stem).is_some() && !listed.contains(&log) {
            options.files.remove(&names.folder.join(name)).map_err(fail)?;
        }
    }
    Ok(())
}
