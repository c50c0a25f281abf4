//! What an undo folder holds, and what in it is damaged.

use std::path::{Path, PathBuf};

use secondsite_hrl::index_path;

use super::folder::{Listing, UndoFolder};
use super::name::SegmentName;
use super::segment::{Segment, damaged};
use crate::error::{DiskError, Result};

/// A place in a segment that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoDamage {
    /// The segment, its index, or the folder when a segment is missing.
    pub path: PathBuf,
    /// Byte offset in the file.
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
    /// Points up to this one cannot be read whole; `None` when no point can.
    pub through_point: Option<u64>,
}

/// The undo of one point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UndoPoint {
    /// Sequence number of the point.
    pub point: u64,
    /// Segments.
    pub segment_count: u64,
    /// Bytes of their files.
    pub stored_bytes: u64,
    /// Ranges they hold.
    pub range_count: u64,
}

/// What a folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UndoSummary {
    /// Points with undo of their own, from the oldest to the newest. A point after which nothing was written has none.
    pub points: Vec<UndoPoint>,
    /// All damage found.
    pub damage: Vec<UndoDamage>,
}

impl UndoSummary {
    /// The damage that spoils a point.
    pub fn damage_of(&self, point: u64) -> Option<&UndoDamage> {
        self.damage.iter().find(|damage| damage.through_point.is_none_or(|through| point <= through))
    }
}

/// Sums up a folder; one that is not there is empty. Looks at headers and sizes alone unless `is_deep`, then at every
/// byte.
///
/// # Errors
/// ACCESS_DENIED, DISK_READ_FAILED, LOG_READ_FAILED. Damage is no error here.
pub fn undo_summary(folder: &Path, is_deep: bool) -> Result<UndoSummary> {
    let folder = UndoFolder::open(folder);
    if !folder.exists() {
        return Ok(UndoSummary::default());
    }
    let epoch = folder.epoch()?;
    loop {
        let listing = folder.list(&epoch)?;
        let summary = sum_up(&folder, &listing, is_deep);
        let is_whole = summary.as_ref().is_ok_and(|summary| summary.damage.is_empty());
        if is_whole || !UndoFolder::is_outdated(&epoch, &listing)? {
            return summary;
        }
    }
}

fn sum_up(folder: &UndoFolder, listing: &Listing, is_deep: bool) -> Result<UndoSummary> {
    let mut summary = UndoSummary::default();
    for gap in &listing.gaps {
        let (path, reason) = (folder.path.clone(), gap.reason());
        summary.damage.push(UndoDamage { path, offset: 0, reason, through_point: gap.through_point });
    }
    for name in &listing.segments {
        summary.add(folder, *name, is_deep)?;
    }
    summary.points.sort_by_key(|point| point.point);
    Ok(summary)
}

impl UndoSummary {
    fn add(&mut self, folder: &UndoFolder, name: SegmentName, is_deep: bool) -> Result<()> {
        let found = self.points.iter().position(|point| point.point == name.point);
        let index = found.unwrap_or(self.points.len());
        if found.is_none() {
            self.points.push(UndoPoint { point: name.point, ..UndoPoint::default() });
        }
        let point = &mut self.points[index];
        point.segment_count += 1;
        let checked = Segment::open(&folder.path, name).and_then(|segment| {
            point.range_count += segment.log().entry_count();
            point.stored_bytes += stored_bytes(&segment)?;
            if is_deep { check(&segment) } else { Ok(()) }
        });
        match checked {
            Err(DiskError::UndoDamaged(place)) => {
                let (offset, reason, through_point) = (place.offset, place.reason, Some(name.point));
                self.damage.push(UndoDamage { path: place.path, offset, reason, through_point });
                Ok(())
            }
            other => other,
        }
    }
}

fn stored_bytes(segment: &Segment) -> Result<u64> {
    let index = index_path(segment.path());
    let metadata = std::fs::metadata(&index).map_err(|e| DiskError::open(&index, e))?;
    Ok(segment.log().header().end_of_log + metadata.len())
}

/// Reads all of a segment.
fn check(segment: &Segment) -> Result<()> {
    secondsite_hrl::verify(segment.path(), None).map_err(damaged)?;
    segment.check_order()
}
