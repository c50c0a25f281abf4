//! Closing a tracked disk, and the stamp by which the next open sees whether anybody changed it since.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use super::disk::TrackedDisk;
use super::header::DiskStamp;
use super::order::{Order, reason_of};
use crate::device::BlockDevice;
use crate::error::Result;

impl TrackedDisk {
    /// Closes the disk: everything durable, the clean-close stamp last. The open log stays open in its file.
    ///
    /// # Errors
    /// DISK_SYNC_FAILED, LOG_WRITE_FAILED: the next open then recovers as after the death of the process.
    pub fn close(&self) -> Result<()> {
        let _slow = self.housekeeping.lock();
        {
            let _no_write_is_in_flight = self.order.lock();
            if self.is_closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
        }
        self.seal_swapped();
        self.flush()?;
        self.device.flush()?;
        self.order.lock().settle_for_close();
        self.sweep()?;
        self.drop_spares();
        self.options.step("closing");
        let mut order = self.order.lock();
        let next_sequence = order.next_sequence();
        order.tracking.sync();
        let header = &mut order.tracking.header;
        header.floor_sequence = header.floor_sequence.max(next_sequence);
        header.stamp = stamp_of(self.device.path());
        header.is_clean = true;
        order.tracking.write_header();
        order.tracking.sync();
        drop(order);
        self.check_tracking()
    }
}

impl Order {
    /// Makes the log whole and durable, index included, so that no region need stay active.
    fn settle_for_close(&mut self) {
        let settled = self.log.as_mut().map_or(Ok(()), |log| {
            log.writer.checkpoint()?;
            log.writer.sync()?;
            log.writer.sync_index()
        });
        if let Err(e) = settled {
            self.give_up_log(reason_of(&e));
        }
        self.tracking.sync();
        let epoch = self.tracking.active.end_epoch();
        self.tracking.clean(epoch);
    }
}

/// What a disk looks like now. A block device keeps no times; what is no file at all looks always the same.
pub(super) fn stamp_of(path: &Path) -> DiskStamp {
    match fs::metadata(path) {
        Ok(m) if m.file_type().is_file() => DiskStamp {
            size_bytes: m.len(),
            mtime_ns: nanoseconds(m.mtime(), m.mtime_nsec()),
            ctime_ns: nanoseconds(m.ctime(), m.ctime_nsec()),
            device: m.dev(),
            inode: m.ino(),
        },
        Ok(m) if m.file_type().is_block_device() => DiskStamp { size_bytes: 1, ..DiskStamp::default() },
        _ => DiskStamp::default(),
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> u64 {
    (seconds.wrapping_mul(1_000_000_000)).wrapping_add(nanoseconds) as u64
}
