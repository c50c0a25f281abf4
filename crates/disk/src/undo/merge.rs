//! Expiry: entries of points that go are moved to the point before, or deleted with the oldest.
//!
//! The new segment stands in place, durably, and the epoch has moved before the first old file goes; until all are gone
//! the folder says the same twice. A call that died is finished by the next: left-over files show by their names.
//!
//! Segments of one point are disjoint, so their entries are brought together by offset without looking at the data of
//! more than one piece at a time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_hrl::{Append, Entry, FsLogFile, LogWriter, Operation, SealedLog};

use super::epoch::Epoch;
use super::folder::{Listing, UndoFolder};
use super::name::SegmentName;
use super::pins::refuse_if_pinned;
use super::ranges::subtract;
use super::save::UndoOptions;
use super::segment::{Lookup, Segment};
use crate::batch::{create, remove};
use crate::error::{DiskError, Place, Result};

/// Neighbouring data is gathered into entries of up to this.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Segments that are worth bringing together: fewer cost readers little.
const RUN_MIN: usize = 4;

/// What a merge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeReport {
    /// Bytes of the files written.
    pub written_bytes: u64,
    /// Segments deleted.
    pub deleted_count: u64,
}

/// Moves what point `from` saved to point `into`, the next older kept one, which then leads back on its own.
///
/// # Errors
/// DISK_IN_USE when somebody reads `from`, or another merge is going on; OPTION_OUT_OF_RANGE when `into` is not older, or
/// there is undo of a point between; UNDO_DAMAGED when a segment cannot be read; LOG_WRITE_FAILED; ABORTED. After any of
/// them the points read as before; the next call goes on.
pub fn merge_point(
    folder: &Path,
    from: u64,
    into: u64,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<MergeReport> {
    let Some(merge) = Merge::begin(folder)? else { return Ok(MergeReport::default()) };
    refuse_if_pinned(folder, |point| point == from)?;
    let is_between = |name: &&SegmentName| into < name.point && name.point < from;
    if into >= from || merge.listing.segments.iter().any(|name| is_between(&name)) {
        let reason = format!("point {from} cannot be merged into point {into}: it is not the next newer one");
        return Err(DiskError::InvalidRequest(Place::whole(folder), reason));
    }
    let sources = merge.listing.of(from);
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
        return Ok(MergeReport::default());
    };
    let name = SegmentName { point: into, first: first.first, last: last.last };
    let held = merge.open(&merge.listing.of(into))?;
    merge.replace(&sources, &held, name, options, stop)
}

/// Brings the segments of a point together where there are many small ones, so that readers open few files. Over the life
/// of a point each byte is moved a logarithmic number of times.
///
/// # Errors
/// DISK_IN_USE when another merge is going on; UNDO_DAMAGED, LOG_WRITE_FAILED, ABORTED as [`merge_point`].
pub fn compact_point(
    folder: &Path,
    point: u64,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<MergeReport> {
    let Some(merge) = Merge::begin(folder)? else { return Ok(MergeReport::default()) };
    let all = merge.listing.of(point);
    let sizes: Vec<u64> = merge.open(&all)?.iter().map(|one| one.log().header().end_of_log).collect();
    let sources = &all[run_to_compact(&sizes)..];
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
        return Ok(MergeReport::default());
    };
    if sources.len() < RUN_MIN {
        return Ok(MergeReport::default());
    }
    let name = SegmentName { point, first: first.first, last: last.last };
    merge.replace(sources, &[], name, options, stop)
}

/// Where the newest run begins that is worth bringing together: an older segment joins when it is no larger than twice all
/// that are newer. What it is in grows by half then, so in n bytes a byte is moved at most log n to the base 1.5 times.
fn run_to_compact(sizes: &[u64]) -> usize {
    let (mut start, mut sum) = (sizes.len(), 0);
    for (index, size) in sizes.iter().enumerate().rev() {
        if sum > 0 && *size > 2 * sum {
            break;
        }
        (start, sum) = (index, sum + size);
    }
    start
}

/// Deletes the undo of all points older than `point`, which becomes the oldest.
///
/// # Errors
/// DISK_IN_USE when somebody reads such a point, or a merge is going on; DISK_WRITE_FAILED. The next call goes on.
pub fn drop_points_before(folder: &Path, point: u64) -> Result<MergeReport> {
    let Some(merge) = Merge::begin(folder)? else { return Ok(MergeReport::default()) };
    refuse_if_pinned(folder, |pinned| pinned < point)?;
    let dropped: Vec<SegmentName> =
        merge.listing.segments.iter().copied().filter(|name| name.point < point).collect();
    let Some(last) = dropped.iter().map(|name| name.last).max() else { return Ok(MergeReport::default()) };
    merge.epoch.note_dropped(last + 1)?;
    merge.epoch.note_change()?;
    merge.folder.delete(&dropped)?;
    Ok(MergeReport { written_bytes: 0, deleted_count: dropped.len() as u64 })
}

/// The folder, locked against other merges and free of what they left behind.
struct Merge {
    folder: UndoFolder,
    epoch: Epoch,
    listing: Listing,
    _lock: std::fs::File,
}

impl Merge {
    /// `None` where nothing was ever saved.
    fn begin(folder: &Path) -> Result<Option<Self>> {
        let folder = UndoFolder::open(folder);
        if !folder.exists() {
            return Ok(None);
        }
        let lock = folder.lock("merge.lock")?;
        let epoch = folder.epoch()?;
        let listing = folder.list(&epoch)?;
        if !listing.replaced.is_empty() {
            epoch.note_change()?;
            folder.delete(&listing.replaced)?;
        }
        Ok(Some(Self { folder, epoch, listing, _lock: lock }))
    }

    fn open(&self, names: &[SegmentName]) -> Result<Vec<Segment>> {
        names.iter().map(|name| Segment::open(&self.folder.path, *name)).collect()
    }

    /// Puts one segment in the place of `sources`, without what `held` holds already.
    fn replace(
        &self,
        sources: &[SegmentName],
        held: &[Segment],
        name: SegmentName,
        options: &UndoOptions,
        stop: &AtomicBool,
    ) -> Result<MergeReport> {
        let opened = self.open(sources)?;
        let out = self.folder.unfinished("merge");
        let sealed = write_merged(&opened, held, &out, options, stop);
        let put = sealed.and_then(|sealed| self.folder.put(&out, &name).map(|()| sealed));
        if put.is_err() {
            remove(&out);
        }
        let sealed = put?;
        self.epoch.note_change()?;
        self.folder.delete(sources)?;
        let written_bytes = sealed.log_size_bytes + sealed.index_size_bytes;
        Ok(MergeReport { written_bytes, deleted_count: sources.len() as u64 })
    }
}

fn write_merged(
    sources: &[Segment],
    held: &[Segment],
    out: &Path,
    options: &UndoOptions,
    stop: &AtomicBool,
) -> Result<SealedLog> {
    let log_options = options.log_options();
    let time_ns = log_options.created_ns;
    let mut target = Target { writer: create(out, log_options)?, time_ns, data: Vec::new(), data_at: 0 };
    let mut walk = Walk::new(sources)?;
    while let Some((source, number, entry)) = walk.next()? {
        if stop.load(Ordering::Relaxed) {
            return Err(DiskError::Stopped(Place::whole(out)));
        }
        let mut ranges = vec![(entry.offset, entry.end())];
        for segment in held {
            ranges = subtract(ranges, segment)?;
        }
        for (start, end) in ranges {
            target.add(&sources[source], number, &entry, start, end)?;
        }
    }
    target.flush()?;
    Ok(target.writer.seal(time_ns)?)
}

/// Entries of disjoint segments by offset.
struct Walk<'s> {
    lookups: Vec<Lookup<'s>>,
    /// Offset, segment, number of the entry.
    heads: BinaryHeap<Reverse<(u64, usize, u64)>>,
}

impl<'s> Walk<'s> {
    fn new(segments: &'s [Segment]) -> Result<Self> {
        let mut walk = Self { lookups: segments.iter().map(Lookup::new).collect(), heads: BinaryHeap::new() };
        for source in 0..segments.len() {
            walk.advance(source, 0)?;
        }
        Ok(walk)
    }

    fn advance(&mut self, source: usize, offset: u64) -> Result<()> {
        if let Some((number, entry)) = self.lookups[source].ending_after(offset)? {
            self.heads.push(Reverse((entry.offset, source, number)));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(usize, u64, Entry)>> {
        let Some(Reverse((offset, source, _))) = self.heads.pop() else { return Ok(None) };
        let Some((number, entry)) = self.lookups[source].ending_after(offset)? else { return Ok(None) };
        self.advance(source, entry.end())?;
        Ok(Some((source, number, entry)))
    }
}

/// The new segment.
struct Target {
    writer: LogWriter<FsLogFile>,
    time_ns: u64,
    data: Vec<u8>,
    data_at: u64,
}

impl Target {
    /// Adds a part of an entry, its data beside what is gathered where they touch.
    fn add(&mut self, segment: &Segment, number: u64, entry: &Entry, start: u64, end: u64) -> Result<()> {
        let length = (end - start) as usize;
        if entry.operation != Operation::Write {
            self.flush()?;
            let time_ns = self.time_ns;
            return Ok(self.writer.append(&[Append::discard(start, length as u64, time_ns)])?);
        }
        let is_next = self.data_at + self.data.len() as u64 == start;
        if !is_next || self.data.len() + length > ENTRY_BYTES_MAX {
            self.flush()?;
        }
        if self.data.is_empty() {
            self.data_at = start;
        }
        let filled = self.data.len();
        self.data.resize(filled + length, 0);
        segment.read(number, entry, start, &mut self.data[filled..])
    }

    fn flush(&mut self) -> Result<()> {
        if !self.data.is_empty() {
            self.writer.append(&[Append::write(self.data_at, &self.data, self.time_ns)])?;
            self.data.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycle_after_cycle_few_segments_stay_and_each_byte_is_moved_a_few_times() {
        let (mut sizes, mut moved): (Vec<u64>, u64) = (Vec::new(), 0);
        for _ in 0..1000 {
            sizes.push(1);
            let start = run_to_compact(&sizes);
            if sizes.len() - start >= RUN_MIN {
                let sum = sizes.drain(start..).sum();
                moved += sum;
                sizes.push(sum);
            }
            // 1000 bytes in sizes that go down to a third (7 of them), and a run that is not brought together yet.
            assert!(sizes.len() <= 7 + RUN_MIN, "{sizes:?}");
        }
        assert_eq!(sizes.iter().sum::<u64>(), 1000);
        assert!(moved <= 1000 * 17, "{moved} bytes moved for 1000");
    }

    #[test]
    fn a_large_old_segment_is_left_alone_by_small_new_ones() {
        assert_eq!(run_to_compact(&[100, 1, 1, 1, 1]), 1);
        assert_eq!(run_to_compact(&[27, 9, 3, 1]), 3);
        assert_eq!(run_to_compact(&[100, 88, 78, 69]), 0);
        assert_eq!(run_to_compact(&[]), 0);
    }
}
