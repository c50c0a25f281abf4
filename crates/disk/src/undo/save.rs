//! The step before every apply: what is about to be overwritten, and was not saved since the point, is saved.
//!
//! What the sealed segments of the point hold is saved, whatever happened since, so a range that an interrupted apply has
//! overwritten already is never read again. The rest is read from the image, which has not been touched there, into a new
//! segment; only when that is durable and the epoch has moved may the image be written.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_hrl::{LogId, LogOptions, SealedLog};

use super::epoch::Epoch;
use super::folder::{Listing, UndoFolder};
use super::name::{POINT_MAX, SAVE_MAX, SegmentName};
use super::ranges::{Ranges, ranges_of_logs, subtract};
use super::segment::Segment;
use crate::batch::{Batch, create, remove};
use crate::device::{BlockDevice, check_range};
use crate::error::{DiskError, Place, Result};
use crate::tracked::{Clock, Random};

/// What new segments are told.
#[derive(Clone)]
pub struct UndoOptions {
    /// The disk.
    pub disk_id: [u8; 16],
    /// Unix nanoseconds.
    pub clock: Clock,
    /// Fills a buffer with bytes that guests cannot guess.
    pub random: Random,
}

impl UndoOptions {
    pub(super) fn log_options(&self) -> LogOptions {
        let (mut id, mut key) = ([0; 16], [0; 32]);
        (self.random)(&mut id);
        (self.random)(&mut key);
        LogOptions {
            id: LogId(id),
            previous_id: LogId::NONE,
            disk_id: self.disk_id,
            created_ns: (self.clock)(),
            first_sequence: 0,
            key,
            keep_space: false,
        }
    }
}

/// What was saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveReport {
    /// Bytes of the disk that were saved now; 0 when all of it was saved before.
    pub saved_bytes: u64,
    /// Bytes of them that are data; the rest is holes and zeros.
    pub data_bytes: u64,
    /// Ranges that were saved now.
    pub range_count: u64,
    /// Bytes of the new segment's files.
    pub written_bytes: u64,
}

/// Saves what `logs` are going to overwrite on `image` and point `point`, the newest kept one, still needs. Must return
/// before the first byte of the logs reaches the image. Called again, also with more logs, it saves what is missing.
///
/// # Errors
/// OPTION_OUT_OF_RANGE when there is undo of a newer point; DISK_IN_USE when another save is going on; the codes of a
/// damaged log; UNDO_DAMAGED when a segment of this point cannot be read; LOG_WRITE_FAILED, DISK_READ_FAILED, ABORTED:
/// nothing is saved, and nothing may be applied.
pub fn save_undo(
    image: &dyn BlockDevice,
    logs: &[&Path],
    folder: &Path,
    point: u64,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SaveReport> {
    let ranges = ranges_of_logs(logs, image.size_bytes())?;
    save(image, ranges, folder, point, options, stop)
}

/// The same for ranges (offset, length) that are about to be written by other means.
///
/// # Errors
/// As [`save_undo`], and DISK_OUT_OF_RANGE.
pub fn save_undo_ranges(
    image: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    folder: &Path,
    point: u64,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SaveReport> {
    let mut wanted = Ranges::default();
    for &(offset, length_bytes) in ranges {
        check_range(image, offset, length_bytes)?;
        wanted.add(offset, offset + length_bytes, image.size_bytes());
    }
    save(image, wanted.finish(), folder, point, options, stop)
}

fn save(
    image: &dyn BlockDevice,
    ranges: Vec<(u64, u64)>,
    folder: &Path,
    point: u64,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SaveReport> {
    let folder = UndoFolder::create(folder)?;
    let _lock = folder.lock("save.lock")?;
    let epoch = folder.epoch()?;
    let listing = folder.list(&epoch)?;
    check_point(&folder, &listing, point)?;
    if epoch.state()?.next_save() == 0
        && let Some(oldest) = listing.segments.first()
    {
        epoch.note_dropped(oldest.first)?; // The epoch file was lost, and what was dropped with it.
    }
    let missing = missing_of(&folder, &epoch, listing.clone(), point, ranges)?;
    let mut report = SaveReport::default();
    let mut next_save = listing.next_save;
    if !missing.is_empty() {
        let name = SegmentName { point, first: next_save, last: next_save };
        let sealed = write_segment(image, &missing, &folder, &name, options, stop)?;
        report = report_of(&missing, &sealed);
        next_save += 1;
    }
    // Also without anything new: a save that died may have put its segment in place and told nobody.
    if next_save > 0 {
        epoch.note_save(next_save - 1)?;
    }
    Ok(report)
}

/// What of `ranges` the segments of a point do not hold. They may be brought together meanwhile.
fn missing_of(
    folder: &UndoFolder,
    epoch: &Epoch,
    mut listing: Listing,
    point: u64,
    ranges: Vec<(u64, u64)>,
) -> Result<Vec<(u64, u64)>> {
    loop {
        let missing = listing
            .of(point)
            .into_iter()
            .try_fold(ranges.clone(), |ranges, name| subtract(ranges, &Segment::open(&folder.path, name)?));
        if missing.is_ok() || !UndoFolder::is_outdated(epoch, &listing)? {
            return missing;
        }
        listing = folder.list(epoch)?;
    }
}

fn check_point(folder: &UndoFolder, listing: &Listing, point: u64) -> Result<()> {
    let refuse = |reason| Err(DiskError::InvalidRequest(Place::whole(&folder.path), reason));
    if let Some(newest) = listing.segments.iter().map(|name| name.point).max()
        && (newest > point || point > POINT_MAX)
    {
        return refuse(format!("point {point}, and there is undo of point {newest} already"));
    }
    if listing.next_save > SAVE_MAX || point > POINT_MAX {
        return refuse(format!("save {} of point {point} is past the limit", listing.next_save));
    }
    Ok(())
}

fn write_segment(
    image: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    folder: &UndoFolder,
    name: &SegmentName,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SealedLog> {
    let out = folder.unfinished("save");
    let sealed = fill(image, ranges, &out, options, stop);
    let put = sealed.and_then(|sealed| folder.put(&out, name).map(|()| sealed));
    if put.is_err() {
        remove(&out); // A disk that is full gets its room back.
    }
    put
}

fn fill(
    image: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    out: &Path,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SealedLog> {
    let log_options = options.log_options();
    let now_ns = log_options.created_ns;
    let mut batch = Batch::new(create(out, log_options)?, now_ns);
    for &(start, end) in ranges {
        if stop.load(Ordering::Relaxed) {
            return Err(DiskError::Stopped(Place::whole(image.path())));
        }
        batch.add_range(image, start, end, u64::MAX)?;
    }
    Ok(batch.writer.seal(now_ns)?)
}

fn report_of(ranges: &[(u64, u64)], sealed: &SealedLog) -> SaveReport {
    SaveReport {
        saved_bytes: ranges.iter().map(|(start, end)| end - start).sum(),
        data_bytes: sealed.data_bytes,
        range_count: ranges.len() as u64,
        written_bytes: sealed.log_size_bytes + sealed.index_size_bytes,
    }
}
