//! A disk that has become larger while it is tracked, or while nobody looked.
//!
//! The maps of the tracking file stand one behind the other, so a larger disk has another layout. A whole new file is
//! written beside the old one, synced, locked and renamed over it: a crash finds the old one or the new one, and each
//! describes the disk as it is (the old one a smaller disk, which the next open grows again). Only when the new file is
//! in its place may the new range be written to.
//!
//! What stands in the new range: holes and zeros are the same on both sides, so nothing is owed. Anything else, as behind the old end
//! of a block device, goes to the changed map, and that range alone is compared.
//!
//! Writes wait while the new file is written under the order lock: 4.1 MiB a TiB of disk. A disk that shrinks is
//! refused: what would be cut off may be in logs that are on their way.

use std::sync::atomic::Ordering;

use super::disk::TrackedDisk;
use super::file::Tracking;
use super::files::{Names, file_error};
use super::options::TrackOptions;
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
        let is_unknown = has_data(&*self.device, old, new)?;
        self.device.flush()?; // The new size is durable before anything rests on it.
        self.options.step("grow-began");
        let mut order = self.order.lock();
        let grown = put_in_place(&self.options, &self.names, &order.tracking, new, is_unknown)?;
        order.tracking = grown.tracking;
        self.locks.lock().push(grown.lock);
        self.size_bytes.store(new, Ordering::Release);
        Ok(new)
    }
}

/// A tracking file in its place, and the lock of it.
pub(super) struct Grown {
    pub(super) tracking: Tracking,
    pub(super) lock: Box<dyn Send + Sync>,
}

/// Refuses a disk that is smaller than it was.
pub(super) fn refuse_shrunk(device: &dyn BlockDevice, old: u64, new: u64) -> Result<()> {
    if new >= old {
        return Ok(());
    }
    let reason = format!("it has shrunk from {old} to {new} bytes");
    Err(DiskError::SizeDiffers(Place::whole(device.path()), reason))
}

/// Whether anything but zeros may stand in a range. A file has a stored block of zeros behind its old end when that was
/// not the end of a block; what is longer is not worth reading here.
pub(super) fn has_data(device: &dyn BlockDevice, from: u64, to: u64) -> Result<bool> {
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

/// Writes the tracking file of a larger disk and puts it into the place of the old one.
pub(super) fn put_in_place(
    options: &TrackOptions,
    names: &Names,
    old: &Tracking,
    disk_size_bytes: u64,
    is_unknown: bool,
) -> Result<Grown> {
    let (path, new_path, files) = (names.tracking(), names.new_tracking(), &options.files);
    let fail = |e| file_error(&new_path, "grow", e);
    // The lock belongs to the file, so the new one has it before it has the name.
    let lock = files.lock(&new_path).map_err(fail)?;
    let lock = lock.ok_or_else(|| DiskError::Busy(Place::whole(&new_path), "somebody grows it".into()))?;
    let file = files.create(&new_path).map_err(fail)?;
    let tracking = old.grown(file, disk_size_bytes, is_unknown).map_err(fail)?;
    options.step("grow-written");
    files.rename(&new_path, &path).map_err(fail)?;
    options.step("grow-renamed");
    if files.sync_folder(&names.folder).is_err() {
        // The old file could come back with the power, and it will not be kept up to date: it must not be believed.
        old.invalidate().map_err(fail)?;
    }
    options.step("grown");
    Ok(Grown { tracking, lock })
}
