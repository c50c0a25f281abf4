//! Ranges of logs, and what of them is not saved yet.

use std::path::Path;

use secondsite_hrl::{LogReader, ReadOptions};

use super::segment::{Lookup, Segment};
use crate::error::Result;

/// Content is saved in units of this: small writes beside each other become one entry.
const UNIT_BYTES: u64 = 4096;
/// Ranges that are gathered before they are sorted and merged.
const GATHERED_MAX: usize = 1 << 20;

/// Ranges (offset, end), sorted and disjoint when [`finish`](Self::finish) returns them.
#[derive(Default)]
pub(super) struct Ranges {
    list: Vec<(u64, u64)>,
    sorted: usize,
}

impl Ranges {
    /// Adds a range of a disk of `size_bytes`, widened to whole units.
    pub(super) fn add(&mut self, offset: u64, end: u64, size_bytes: u64) {
        let start = offset / UNIT_BYTES * UNIT_BYTES;
        let end = end.next_multiple_of(UNIT_BYTES).min(size_bytes);
        let gathered = &mut self.list[self.sorted..];
        match gathered.last_mut() {
            Some(last) if (last.0..=last.1).contains(&start) => {
                last.1 = last.1.max(end);
            }
            _ if start < end => self.list.push((start, end)),
            _ => {}
        }
        if self.list.len() - self.sorted >= GATHERED_MAX {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.list.sort_unstable();
        self.list.dedup_by(|next, kept| {
            let touches = next.0 <= kept.1;
            if touches {
                kept.1 = kept.1.max(next.1);
            }
            touches
        });
        self.sorted = self.list.len();
    }

    /// The ranges in order, none touching another.
    pub(super) fn finish(mut self) -> Vec<(u64, u64)> {
        self.merge();
        self.list
    }
}

/// The ranges that logs write to, of a disk of `size_bytes`.
pub(super) fn ranges_of_logs(logs: &[&Path], size_bytes: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Ranges::default();
    for path in logs {
        let options = ReadOptions { disk_size_bytes: Some(size_bytes), ..ReadOptions::default() };
        LogReader::open_with(path, options)?.entries()?.for_each(|entry| {
            ranges.add(entry.offset, entry.end(), size_bytes);
            Ok(())
        })?;
    }
    Ok(ranges.finish())
}

/// What of `ranges` no entry of a segment covers.
pub(super) fn subtract(ranges: Vec<(u64, u64)>, segment: &Segment) -> Result<Vec<(u64, u64)>> {
    let mut lookup = Lookup::new(segment);
    let mut left = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            let found = lookup.ending_after(at)?;
            let next = found.map_or(end, |(_, entry)| entry.offset.min(end));
            if next > at {
                left.push((at, next));
            }
            at = found.map_or(end, |(_, entry)| entry.end());
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_widened_merged_and_end_with_the_disk() {
        let mut ranges = Ranges::default();
        for (offset, end) in [(512, 1024), (4096, 4608), (20480, 24576), (99840, 100352), (0, 512)] {
            ranges.add(offset, end, 100_352);
        }
        assert_eq!(ranges.finish(), [(0, 8192), (20480, 24576), (98304, 100_352)]);
    }
}
