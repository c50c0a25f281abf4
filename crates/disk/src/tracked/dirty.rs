//! What a backup would have to copy: the chunks written since the last acknowledged cut.
//!
//! A cut is **acknowledged** when its logs are released: the replica's image holds them. So dirty is what stands in logs
//! that were not released (sealed, being sealed, open), in the changed map, and among the candidates of a
//! resynchronization. It may say too much (chunks of 64 KiB; logs joined below), never too little.
//!
//! Memory is bounded: one bit a chunk and log where something was written, and at most [`LOGS_APART_MAX`] logs are kept
//! apart. Older ones are joined, and are clean only when the last of them is released.

use std::collections::BTreeMap;

use super::bits::SparseBits;
use super::disk::TrackedDisk;
use super::file::CHUNK_BYTES;
use super::order::Order;
use super::resync::clip;
use crate::device::BlockDevice;

/// Logs whose chunks are kept apart.
const LOGS_APART_MAX: usize = 32;

/// The chunks of sealed logs, by number.
#[derive(Debug, Default)]
pub(crate) struct Unreleased(BTreeMap<u64, SparseBits>);

impl Unreleased {
    /// A log was sealed.
    pub(crate) fn insert(&mut self, number: u64, ranges: SparseBits) {
        self.0.insert(number, ranges);
        while self.0.len() > LOGS_APART_MAX {
            let Some((_, oldest)) = self.0.pop_first() else { return };
            if let Some(mut next) = self.0.first_entry() {
                next.get_mut().union(&oldest, |_| ());
            }
        }
    }

    /// The chunks of all of them.
    pub(crate) fn all(&self) -> SparseBits {
        let mut all = SparseBits::default();
        self.0.values().for_each(|ranges| all.union(ranges, |_| ()));
        all
    }

    /// Forgets the chunks from `chunk_count` on: the disk has none there any more.
    pub(crate) fn truncate(&mut self, chunk_count: u64) {
        self.0.values_mut().for_each(|ranges| ranges.truncate(chunk_count));
    }

    /// All logs up to a number were released, or their chunks are in the changed map.
    pub(crate) fn release_through(&mut self, number: u64) {
        self.0.retain(|kept, _| *kept > number);
    }
}

impl Order {
    fn dirty_maps(&self) -> impl Iterator<Item = &SparseBits> {
        let logs = self.unreleased.0.values().chain(self.sealing.iter().map(|sealing| &sealing.ranges));
        logs.chain([&self.in_log, self.tracking.changed(), self.tracking.candidates()])
    }
}

impl TrackedDisk {
    /// What was written inside a window since the last acknowledged cut (see the head of this file): offset and length,
    /// ascending, multiples of 64 KiB but for the ends of window and disk.
    ///
    /// It takes the order lock for a time that grows with the chunks of the window and the logs that were not released:
    /// ask for windows of some GiB.
    pub fn dirty(&self, offset: u64, length_bytes: u64) -> Vec<(u64, u64)> {
        let length_bytes = length_bytes.min(self.size_bytes().saturating_sub(offset));
        let chunks = offset / CHUNK_BYTES..(offset + length_bytes).div_ceil(CHUNK_BYTES);
        let mut dirty = SparseBits::default();
        let order = self.order.lock();
        for map in order.dirty_maps() {
            map.runs_in(chunks.clone()).into_iter().for_each(|run| dirty.set(run, |_| ()));
        }
        drop(order);
        clip(&dirty, offset, length_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_logs_are_joined_and_clean_only_when_the_last_of_them_is_released() {
        let mut unreleased = Unreleased::default();
        for number in 0..LOGS_APART_MAX as u64 + 3 {
            let mut bits = SparseBits::default();
            bits.set(number..number + 1, |_| ());
            unreleased.insert(number, bits);
        }
        assert_eq!(unreleased.0.len(), LOGS_APART_MAX);
        assert_eq!(unreleased.0[&3].runs_in(0..100).first(), Some(&(0..4)));
        unreleased.release_through(2);
        assert_eq!(unreleased.0[&3].count(), 4, "log 3 was not released");
        unreleased.release_through(3);
        assert_eq!(unreleased.0.first_key_value().map(|(number, _)| *number), Some(4));
    }
}
