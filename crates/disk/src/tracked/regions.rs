//! Which regions may differ from what durable logs say: the bound of what a power loss costs.
//!
//! A region (4 MiB) is made active, durably, before the first write to it, and stays so until what was written there
//! is durable elsewhere: in a log, or as bits of the changed map. After a power loss exactly the active regions are
//! compared. At most [`ACTIVE_REGIONS_MAX`] are active: 1228 x 4 MiB = 4.80 GiB (5 150 605 312 bytes), whatever the
//! size of the disk.
//!
//! **Epochs.** Each write notes the present epoch in its regions. Whoever makes things durable ends the epoch under
//! the order lock, syncs, and then cleans the regions whose last write was in that epoch or before; a region written
//! to meanwhile carries a later epoch and stays.
//!
//! **Neighbours.** An activation costs a sync, so the eight regions of the aligned group come along where the bound
//! leaves room: 42 syncs instead of 2048 for 8 GiB of random writes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::bits::{BITS_BYTES, SECTOR_BITS, SectorBits};

/// Bytes of a region.
pub const REGION_BYTES: u64 = 4 << 20;
/// Most regions active at once.
pub const ACTIVE_REGIONS_MAX: usize = 1228;
/// The lowest bound that can be asked for: a request needs two regions, twice.
pub(crate) const ACTIVE_REGIONS_MIN: usize = 4;
/// Regions activated together.
const GROUP: u64 = 8;
const _: () = assert!(ACTIVE_REGIONS_MAX as u64 * REGION_BYTES == 5_150_605_312);

/// The active regions, each with the epoch of its last write.
#[derive(Debug, Default)]
pub(crate) struct ActiveRegions {
    regions: BTreeMap<u64, u64>,
    region_count: u64,
    epoch: u64,
    active_count_max: usize,
}

impl ActiveRegions {
    /// No region of a disk of this size is active.
    pub(crate) fn new(disk_size_bytes: u64) -> Self {
        let region_count = disk_size_bytes.div_ceil(REGION_BYTES);
        Self { regions: BTreeMap::new(), region_count, epoch: 1, active_count_max: ACTIVE_REGIONS_MAX }
    }

    /// The same regions of a disk of another size, as far as it has them.
    pub(crate) fn resized(&self, disk_size_bytes: u64) -> Self {
        let region_count = disk_size_bytes.div_ceil(REGION_BYTES);
        let mut regions = self.regions.clone();
        regions.retain(|region, _| *region < region_count);
        Self { regions, region_count, ..*self }
    }

    /// Lowers the bound; what is active already stays.
    pub(crate) fn limit(&mut self, active_count_max: usize) {
        self.active_count_max = active_count_max.clamp(ACTIVE_REGIONS_MIN, ACTIVE_REGIONS_MAX);
    }

    /// Bytes that a request may have so that it always fits: a piece that is not aligned touches one region more.
    pub(crate) fn piece_bytes_max(&self) -> u64 {
        (self.active_count_max as u64 / 2 - 1) * REGION_BYTES
    }

    /// The bound.
    pub(crate) fn count_max(&self) -> u64 {
        self.active_count_max as u64
    }

    /// Whether it is time to clean: three quarters of the bound are reached.
    pub(crate) fn is_crowded(&self) -> bool {
        self.regions.len() > self.active_count_max * 3 / 4
    }

    /// As the tracking file says.
    pub(crate) fn restore(&mut self, regions: impl IntoIterator<Item = u64>) {
        let inside = regions.into_iter().filter(|region| *region < self.region_count);
        self.regions.extend(inside.map(|region| (region, 0)));
    }

    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.keys().copied()
    }

    /// Notes a write to a range. False when a region of it is not active yet: nothing may be written then.
    pub(crate) fn touch(&mut self, offset: u64, length_bytes: u64) -> bool {
        let epoch = self.epoch;
        regions_of(offset, length_bytes).all(|region| match self.regions.get_mut(&region) {
            Some(last) => {
                *last = epoch;
                true
            }
            None => false,
        })
    }

    /// The regions to activate so that ranges can be written: those they touch, and their neighbours while there is
    /// room. `None` when even those they touch do not fit: clean first.
    pub(crate) fn missing(&self, ranges: &[(u64, u64)]) -> Option<Vec<u64>> {
        let touched: BTreeSet<u64> =
            ranges.iter().flat_map(|&(offset, length_bytes)| regions_of(offset, length_bytes)).collect();
        let is_missing = |region: &u64| !self.regions.contains_key(region);
        let mut missing: Vec<u64> = touched.iter().copied().filter(is_missing).collect();
        let room = self.active_count_max.checked_sub(self.regions.len() + missing.len())?;
        let groups: BTreeSet<u64> = missing.iter().map(|region| region / GROUP).collect();
        let neighbours = groups.into_iter().flat_map(|group| group * GROUP..(group + 1) * GROUP);
        let is_new =
            |region: &u64| *region < self.region_count && !touched.contains(region) && is_missing(region);
        missing.extend(neighbours.filter(is_new).take(room));
        Some(missing)
    }

    /// Makes regions active.
    pub(crate) fn activate(&mut self, regions: &[u64]) {
        self.regions.extend(regions.iter().map(|region| (*region, self.epoch)));
        debug_assert!(self.regions.len() <= ACTIVE_REGIONS_MAX);
    }

    /// Ends the epoch and returns it: see [`clean`](Self::clean).
    pub(crate) fn end_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch - 1
    }

    /// Everything written up to the end of `epoch` is durable: the regions cleaned by it.
    pub(crate) fn clean(&mut self, epoch: u64) -> Vec<u64> {
        let gone: Vec<u64> =
            self.regions.iter().filter(|(_, last)| **last <= epoch).map(|(r, _)| *r).collect();
        gone.iter().for_each(|region| {
            self.regions.remove(region);
        });
        gone
    }

    /// The bits of one sector of the map.
    pub(crate) fn sector(&self, sector: u64) -> SectorBits {
        let mut bits = [0; BITS_BYTES];
        let start = sector * SECTOR_BITS;
        for (region, _) in self.regions.range(start..start + SECTOR_BITS) {
            bits[(region - start) as usize / 8] |= 1 << ((region - start) % 8);
        }
        bits
    }
}

/// The regions a range touches.
pub(crate) fn regions_of(offset: u64, length_bytes: u64) -> Range<u64> {
    offset / REGION_BYTES..(offset + length_bytes).div_ceil(REGION_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 100 << 30;

    #[test]
    fn a_first_write_takes_the_aligned_neighbours_along() {
        let mut active = ActiveRegions::new(DISK);
        assert!(!active.touch(9 * REGION_BYTES + 512, 512));
        let mut missing = active.missing(&[(9 * REGION_BYTES + 512, 512)]).unwrap();
        missing.sort_unstable();
        assert_eq!(missing, (8..16).collect::<Vec<_>>());
        active.activate(&missing);
        assert!(active.touch(8 * REGION_BYTES, 8 * REGION_BYTES));
        assert!(!active.touch(16 * REGION_BYTES - 512, 1024), "the next group is not active");
    }

    #[test]
    fn neighbours_end_with_the_disk() {
        let active = ActiveRegions::new(3 * REGION_BYTES + 512);
        let mut missing = active.missing(&[(REGION_BYTES, 512)]).unwrap();
        missing.sort_unstable();
        assert_eq!(missing, [0, 1, 2, 3]);
    }

    #[test]
    fn at_the_bound_only_what_is_touched_comes_and_then_nothing() {
        let mut active = ActiveRegions::new(DISK);
        active.activate(&(0..ACTIVE_REGIONS_MAX as u64 - 1).collect::<Vec<_>>());
        let far = 4000 * REGION_BYTES;
        assert_eq!(active.missing(&[(far, 512)]), Some(vec![4000]));
        assert_eq!(active.missing(&[(far, REGION_BYTES + 512)]), None, "two do not fit");
        active.activate(&[4000]);
        assert_eq!(active.missing(&[(5000 * REGION_BYTES, 512)]), None);
        assert_eq!(active.missing(&[(far, 512)]), Some(vec![]), "what is active needs no room");
    }

    #[test]
    fn a_region_written_after_the_epoch_ended_is_not_cleaned() {
        let mut active = ActiveRegions::new(DISK);
        active.activate(&[1, 2, 3]);
        assert!(active.touch(REGION_BYTES, 3 * REGION_BYTES));
        let epoch = active.end_epoch();
        assert!(active.touch(2 * REGION_BYTES, 512));
        assert_eq!(active.clean(epoch), [1, 3]);
        assert_eq!(active.iter().collect::<Vec<_>>(), [2]);
        let epoch = active.end_epoch();
        assert_eq!(active.clean(epoch), [2]);
    }
}
