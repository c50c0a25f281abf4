//! A disk of another size than it was tracked with: one that has grown, and one that has shrunk and may have.
//!
//! The maps of the tracking file stand one behind the other, so a disk of another size has another layout. A whole new file
//! is written beside the old one, synced, locked and renamed over it: a crash finds the old one or the new one, and each
//! describes the disk as it is (the old one a smaller disk, which the next open grows again, or a larger one, which it shrinks
//! where that is accepted). Only when the new file is in its place may a new range be written to.
//!
//! **Growth** is noticed by itself. What stands in the new range: holes and zeros are the same on both sides, so nothing is
//! owed. Anything else, as behind the old end of a block device, goes to the changed map, and that range alone is compared.
//!
//! **A shrink** is refused unless somebody accepts that very size: a smaller disk may be the wrong disk. Then maps, and what
//! is known of logs, end with the disk. The logs themselves stay as they are: entries past the end are true of the cut that
//! they are part of; the replica has them before it shrinks, and a redo passes over them. One that is found at an open happened
//! while nobody tracked the disk, so all of it is unknown.
//!
//! Writes wait while the new file is written under the order lock: 4.1 MiB a TiB of disk.

use std::sync::atomic::Ordering;

use super::disk::TrackedDisk;
use super::file::{Tracking, Unknown};
use super::files::{Names, file_error};
use super::options::TrackOptions;
use super::state::ResyncReason;
use crate::device::{BlockDevice, ExtentKind, extents};
use crate::error::{DiskError, Place, Result};

/// Longest stored stretch of a new range that is looked at.
const READ_BYTES_MAX: u64 = 1 << 20;

impl TrackedDisk {
    /// Notices that the disk has grown, and makes its new range usable. Returns the size; the same when it has not.
    ///
    /// The replica has to grow before the next cut is applied there.
    ///
    /// # Errors
    /// DISK_SIZE_DIFFERS when the disk has shrunk; LOG_WRITE_FAILED, DISK_SYNC_FAILED, DISK_READ_FAILED: it goes on
    /// with its old size then.
    pub fn grow(&self) -> Result<u64> {
        let _slow = self.housekeeping.lock();
        self.check_open()?;
        self.check_tracking()?;
        let (old, new) = (self.size_bytes(), self.device.refresh_size()?);
        if new == old {
            return Ok(old);
        }
        refuse_shrunk(&*self.device, old, new)?;
        let unknown = unknown_behind(&*self.device, old, new)?;
        self.device.flush()?; // The new size is durable before anything rests on it.
        self.options.step("grow-began");
        let mut order = self.order.lock();
        let resized = put_in_place(&self.options, &self.names, &order.tracking, new, unknown)?;
        order.tracking = resized.tracking;
        self.locks.lock().push(resized.lock);
        self.size_bytes.store(new, Ordering::Release);
        Ok(new)
    }

    /// Accepts that the disk has shrunk, to `size_bytes` exactly: what stood behind its end is forgotten, and nothing is
    /// written or read there any more. Accepting again what was accepted does nothing.
    ///
    /// Whatever is in logs by now reaches to the old end. The replica may shrink once it has all of them: with the next cut.
    ///
    /// # Errors
    /// DISK_SIZE_DIFFERS when it has another size than that, or has not shrunk; LOG_WRITE_FAILED, DISK_SYNC_FAILED,
    /// DISK_READ_FAILED: it goes on with its old size then.
    pub fn shrink(&self, size_bytes: u64) -> Result<()> {
        let _slow = self.housekeeping.lock();
        self.check_open()?;
        self.check_tracking()?;
        let mut order = self.order.lock(); // A write that is on its way could make a file longer again.
        let (old, new) = (self.size_bytes(), self.device.refresh_size()?);
        if new != size_bytes || new > old {
            let reason = format!("it has {new} bytes and had {old}; {size_bytes} were accepted");
            return Err(DiskError::SizeDiffers(Place::whole(self.device.path()), reason));
        }
        if new == old {
            return Ok(());
        }
        self.device.flush()?; // The new size is durable before anything rests on it.
        self.options.step("shrink-began");
        let resized = put_in_place(&self.options, &self.names, &order.tracking, new, None)?;
        order.tracking = resized.tracking;
        let chunk_count = order.tracking.chunk_count();
        order.forget_behind(chunk_count);
        self.locks.lock().push(resized.lock);
        self.device.note_shrunk(new);
        self.size_bytes.store(new, Ordering::Release);
        Ok(())
    }
}

/// A tracking file in its place, and the lock of it.
pub(super) struct Resized {
    pub(super) tracking: Tracking,
    pub(super) lock: Box<dyn Send + Sync>,
}

/// The tracking of a disk whose size has changed while nobody tracked it, or just before the process died. Whether it may
/// have was looked at before.
pub(super) fn resize_if_needed(
    device: &dyn BlockDevice,
    options: &TrackOptions,
    names: &Names,
    tracking: Tracking,
    locks: &mut Vec<Box<dyn Send + Sync>>,
) -> Result<Tracking> {
    let (old, new) = (tracking.header.disk_size_bytes, device.size_bytes());
    if new == old || (new > old && options.is_growth_deferred) {
        return Ok(tracking);
    }
    let unknown = if new > old {
        unknown_behind(device, old, new)?
    } else {
        Some(Unknown { offset: 0, length_bytes: new, reason: ResyncReason::DiskModifiedOffline })
    };
    let resized = put_in_place(options, names, &tracking, new, unknown)?;
    locks.push(resized.lock);
    Ok(resized.tracking)
}

/// Refuses a disk that is smaller than it was.
fn refuse_shrunk(device: &dyn BlockDevice, old: u64, new: u64) -> Result<()> {
    if new >= old {
        return Ok(());
    }
    let reason = format!("it has shrunk from {old} to {new} bytes");
    Err(DiskError::SizeDiffers(Place::whole(device.path()), reason))
}

/// The new range of a disk, where anything but zeros may stand in it.
fn unknown_behind(device: &dyn BlockDevice, from: u64, to: u64) -> Result<Option<Unknown>> {
    let unknown = Unknown { offset: from, length_bytes: to - from, reason: ResyncReason::AskedFor };
    Ok(has_data(device, from, to)?.then_some(unknown))
}

/// A file has a stored block of zeros behind its old end when that was not the end of a block; what is longer is not worth
/// reading here.
fn has_data(device: &dyn BlockDevice, from: u64, to: u64) -> Result<bool> {
    let stored = extents(device, from, to - from)?;
    let stored = stored.iter().filter(|extent| extent.kind == ExtentKind::Data);
    let mut buffer = Vec::new();
    for extent in stored {
        if extent.length_bytes > READ_BYTES_MAX {
            return Ok(true);
        }
        buffer.resize(extent.length_bytes as usize, 0);
        device.read_at(extent.offset, &mut buffer)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes the tracking file of a disk of another size and puts it into the place of the old one.
fn put_in_place(
    options: &TrackOptions,
    names: &Names,
    old: &Tracking,
    disk_size_bytes: u64,
    unknown: Option<Unknown>,
) -> Result<Resized> {
    let (path, new_path, files) = (names.tracking(), names.new_tracking(), &options.files);
    let fail = |e| file_error(&new_path, "resize", e);
    // The lock belongs to the file, so the new one has it before it has the name.
    let lock = files.lock(&new_path).map_err(fail)?;
    let lock = lock.ok_or_else(|| DiskError::Busy(Place::whole(&new_path), "somebody resizes it".into()))?;
    let file = files.create(&new_path).map_err(fail)?;
    let tracking = old.resized(file, disk_size_bytes, unknown).map_err(fail)?;
    options.step("resize-written");
    files.rename(&new_path, &path).map_err(fail)?;
    options.step("resize-renamed");
    if files.sync_folder(&names.folder).is_err() {
        // The old file could come back with the power, and it will not be kept up to date: it must not be believed.
        old.invalidate().map_err(fail)?;
    }
    options.step("resized");
    Ok(Resized { tracking, lock })
}
