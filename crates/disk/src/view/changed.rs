//! What differs between two points: the ranges that were overwritten between them, from the indexes of segments alone.
//!
//! A range that was overwritten with what stood there already is among them; [`differing_ranges`] compares the bytes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::{BlockDevice, Extent, ExtentKind};
use crate::error::{DiskError, Place, Result};
use crate::undo::{Lookup, Segment, UndoFolder};

/// Bytes that are compared at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Differences are told in units of this.
const UNIT_BYTES: usize = 4096;

/// The image as it stands now, as the end of a span of points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latest {
    /// Up to a point.
    Point(u64),
    /// Up to the newest that was applied, or is being applied.
    Image,
}

/// Ranges (offset, length) that were overwritten between point `from` and `to`, from byte `at` on: in order, none
/// touching another, at most `count` of them. The next page begins where the last of them ends; an empty one is the end.
///
/// # Errors
/// UNDO_DAMAGED when the span cannot be told; OPTION_OUT_OF_RANGE when `to` is older than `from`; LOG_READ_FAILED.
pub fn changed_ranges(
    folder: &Path,
    from: u64,
    to: Latest,
    at: u64,
    count: usize,
) -> Result<Vec<(u64, u64)>> {
    if matches!(to, Latest::Point(to) if to < from) {
        let reason = format!("point {from} is newer than the end of the span");
        return Err(DiskError::InvalidRequest(Place::whole(folder), reason));
    }
    let folder = UndoFolder::open(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let segments = open_span(&folder, from, to)?;
    let mut lookups: Vec<Lookup<'_>> = segments.iter().map(Lookup::new).collect();
    let (mut ranges, mut at) = (Vec::new(), at);
    while ranges.len() < count {
        let Some((start, end)) = next_range(&mut lookups, at)? else { break };
        ranges.push((start, end - start));
        at = end;
    }
    Ok(ranges)
}

fn open_span(folder: &UndoFolder, from: u64, to: Latest) -> Result<Vec<Segment>> {
    let epoch = folder.epoch()?;
    loop {
        let listing = folder.list(&epoch)?;
        if let Some(gap) = listing.gaps.iter().find(|gap| gap.concerns(from)) {
            return Err(gap.damage(&folder.path));
        }
        let names = listing.since(from).into_iter();
        let names = names.filter(|name| !matches!(to, Latest::Point(to) if name.point >= to));
        let segments: Result<Vec<_>> = names.map(|name| Segment::open(&folder.path, name)).collect();
        if segments.is_ok() || epoch.value()? == listing.epoch {
            return segments;
        }
    }
}

/// The first range from `at` on that some segment holds, grown over all that touch it.
fn next_range(lookups: &mut [Lookup<'_>], at: u64) -> Result<Option<(u64, u64)>> {
    let mut first: Option<(u64, u64)> = None;
    for lookup in lookups.iter_mut() {
        if let Some((_, entry)) = lookup.ending_after(at)? {
            let found = (entry.offset.max(at), entry.end());
            first = Some(first.map_or(found, |first| first.min(found)));
        }
    }
    let Some((start, mut end)) = first else { return Ok(None) };
    loop {
        let before = end;
        for lookup in lookups.iter_mut() {
            while let Some((_, entry)) = lookup.ending_after(end)?
                && entry.offset <= end
            {
                end = entry.end();
            }
        }
        if end == before {
            return Ok(Some((start, end)));
        }
    }
}

/// Of `ranges` (offset, length) the parts, in units of 4 KiB, in which two disks differ.
///
/// # Errors
/// ABORTED, and those of the disks.
pub fn differing_ranges(
    a: &dyn BlockDevice,
    b: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    stop: &AtomicBool,
) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut buffers = [vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]];
    let common = a.size_bytes().min(b.size_bytes());
    for &(offset, length_bytes) in ranges {
        let (mut at, end) = (offset, (offset + length_bytes).min(common));
        while at < end {
            if stop.load(Ordering::Relaxed) {
                return Err(DiskError::Stopped(Place::whole(a.path())));
            }
            let (left, right) = (a.extent_at(at, end)?, b.extent_at(at, end)?);
            let stop_at = left.end().min(right.end());
            at = match is_hole(&left) && is_hole(&right) {
                true => stop_at,
                false => compare_piece(a, b, at, end.min(at + PIECE_BYTES), &mut buffers, &mut found)?,
            };
        }
    }
    Ok(found)
}

fn is_hole(extent: &Extent) -> bool {
    extent.kind == ExtentKind::Hole
}

fn compare_piece(
    a: &dyn BlockDevice,
    b: &dyn BlockDevice,
    at: u64,
    end: u64,
    buffers: &mut [Vec<u8>; 2],
    found: &mut Vec<(u64, u64)>,
) -> Result<u64> {
    let length = (end - at) as usize;
    let [left, right] = buffers;
    a.read_at(at, &mut left[..length])?;
    b.read_at(at, &mut right[..length])?;
    let units = left[..length].chunks(UNIT_BYTES).zip(right[..length].chunks(UNIT_BYTES));
    for (index, (one, other)) in units.enumerate() {
        if one == other {
            continue;
        }
        let start = at + (index * UNIT_BYTES) as u64;
        match found.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += one.len() as u64,
            _ => found.push((start, one.len() as u64)),
        }
    }
    Ok(end)
}
