//! A sparse bitmap in pieces of one sector, so that what was changed can be written sector by sector.
//!
//! A sector on disk holds [`SECTOR_BITS`] bits and a check of its own: sector writes are atomic, so after a crash a
//! sector is old or new, never wrong, and no journal is needed. In memory only sectors with a bit set exist: a clean
//! map of any disk costs nothing, a full one 1/8 byte per bit.

use std::collections::BTreeMap;
use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a sector.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Bytes of bits in a sector; the other 8 are its check.
pub(crate) const BITS_BYTES: usize = SECTOR_BYTES - 8;
/// Bits in a sector.
pub(crate) const SECTOR_BITS: u64 = BITS_BYTES as u64 * 8;

/// The bits of one sector.
pub(crate) type SectorBits = [u8; BITS_BYTES];

/// A sparse bitmap.
#[derive(Debug, Clone, Default)]
pub(crate) struct SparseBits {
    sectors: BTreeMap<u64, Box<SectorBits>>,
    count: u64,
}

impl SparseBits {
    /// Bits that are set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether all bits of a range are set.
    pub(crate) fn contains(&self, bits: Range<u64>) -> bool {
        pieces(bits).all(|(sector, inside)| {
            self.sectors.get(&sector).is_some_and(|s| {
                bytes_of(&inside).all(|byte| s[byte] & mask(byte, &inside) == mask(byte, &inside))
            })
        })
    }

    /// Sets a range; `touched` learns the sectors that changed.
    pub(crate) fn set(&mut self, bits: Range<u64>, mut touched: impl FnMut(u64)) {
        for (sector, inside) in pieces(bits) {
            let content = self.sectors.entry(sector).or_insert_with(|| Box::new([0; BITS_BYTES]));
            let before = self.count;
            for byte in bytes_of(&inside) {
                let fresh = mask(byte, &inside) & !content[byte];
                content[byte] |= fresh;
                self.count += u64::from(fresh.count_ones());
            }
            if self.count != before {
                touched(sector);
            }
        }
    }

    /// The bits of one sector.
    pub(crate) fn sector(&self, sector: u64) -> SectorBits {
        self.sectors.get(&sector).map_or([0; BITS_BYTES], |content| **content)
    }

    /// Takes the bits of a whole sector, as read from a file.
    pub(crate) fn insert_sector(&mut self, sector: u64, bits: &SectorBits) {
        let added: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        if added > 0 && self.sectors.insert(sector, Box::new(*bits)).is_none() {
            self.count += added;
        }
    }

    /// Adds all bits of another map; `touched` learns the sectors that changed.
    pub(crate) fn union(&mut self, other: &Self, touched: impl FnMut(u64)) {
        self.combine(other, |mine, theirs| mine | theirs, touched);
    }

    /// Takes all bits of another map out; `touched` learns the sectors that changed.
    pub(crate) fn subtract(&mut self, other: &Self, touched: impl FnMut(u64)) {
        self.combine(other, |mine, theirs| mine & !theirs, touched);
    }

    fn combine(&mut self, other: &Self, merge: impl Fn(u8, u8) -> u8, mut touched: impl FnMut(u64)) {
        for (sector, theirs) in &other.sectors {
            let before = self.sector(*sector);
            let mut after = before;
            after.iter_mut().zip(theirs.iter()).for_each(|(mine, theirs)| *mine = merge(*mine, *theirs));
            if after != before {
                touched(*sector);
                self.count = self.count + ones(&after) - ones(&before);
                self.sectors.insert(*sector, Box::new(after));
            }
            if after == [0; BITS_BYTES] {
                self.sectors.remove(sector);
            }
        }
    }

    /// Forgets all bits from `end` on.
    pub(crate) fn truncate(&mut self, end: u64) {
        let last = end / SECTOR_BITS;
        let mut behind = self.sectors.split_off(&last);
        self.count -= behind.values().map(|content| ones(content)).sum::<u64>();
        if let Some(mut content) = behind.remove(&last) {
            let inside = 0..end % SECTOR_BITS;
            content.iter_mut().enumerate().for_each(|(byte, bits)| *bits &= mask(byte, &inside));
            self.insert_sector(last, &content);
        }
    }

    /// Runs of set bits inside a range, ascending, as long as they can be.
    pub(crate) fn runs_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let sectors = range.start / SECTOR_BITS..range.end.div_ceil(SECTOR_BITS);
        for (sector, content) in self.sectors.range(sectors) {
            let bits = set_bits(content).map(|bit| sector * SECTOR_BITS + bit);
            for bit in bits.filter(|bit| range.contains(bit)) {
                match runs.last_mut() {
                    Some(last) if last.end == bit => last.end += 1,
                    _ => runs.push(bit..bit + 1),
                }
            }
        }
        runs
    }
}

fn ones(content: &SectorBits) -> u64 {
    content.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

fn set_bits(content: &SectorBits) -> impl Iterator<Item = u64> + '_ {
    let bytes = content.iter().enumerate().filter(|(_, byte)| **byte != 0);
    bytes.flat_map(|(n, byte)| {
        (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| n as u64 * 8 + bit)
    })
}

/// The sectors of a range with the bits inside of each.
fn pieces(bits: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let sectors =
        if bits.is_empty() { 0..0 } else { bits.start / SECTOR_BITS..bits.end.div_ceil(SECTOR_BITS) };
    sectors.map(move |sector| {
        let start = sector * SECTOR_BITS;
        (sector, bits.start.max(start) - start..bits.end.min(start + SECTOR_BITS) - start)
    })
}

fn bytes_of(inside: &Range<u64>) -> Range<usize> {
    inside.start as usize / 8..(inside.end as usize).div_ceil(8)
}

/// The bits of a byte that lie inside a range.
fn mask(byte: usize, inside: &Range<u64>) -> u8 {
    let start = byte as u64 * 8;
    let low = inside.start.saturating_sub(start).min(8);
    let high = inside.end.saturating_sub(start).min(8);
    ((0xffu16 << low) & ((1u16 << high) - 1)) as u8
}

/// Seed of a sector's check: the right sector of the right map of the right disk, or it does not check.
pub(crate) fn sector_seed(disk_id: &[u8; 16], map: u8, sector: u64) -> u64 {
    let mut bytes = [0; 25];
    bytes[..16].copy_from_slice(disk_id);
    bytes[16..24].copy_from_slice(&sector.to_le_bytes());
    bytes[24] = map;
    xxh3_64(&bytes)
}

/// The 512 bytes of a sector.
pub(crate) fn encode_sector(bits: &SectorBits, seed: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes[..BITS_BYTES].copy_from_slice(bits);
    bytes[BITS_BYTES..].copy_from_slice(&xxh3_64_with_seed(bits, seed).to_le_bytes());
    bytes
}

/// The bits of a sector; `None` when it does not check.
pub(crate) fn parse_sector(bytes: &[u8], seed: u64) -> Option<SectorBits> {
    let bits: SectorBits = bytes.get(..BITS_BYTES)?.try_into().ok()?;
    let check: [u8; 8] = bytes.get(BITS_BYTES..SECTOR_BYTES)?.try_into().ok()?;
    (xxh3_64_with_seed(&bits, seed).to_le_bytes() == check).then_some(bits)
}

/// Bit positions set in a sector.
pub(crate) fn bits_of_sector(sector: u64, content: &SectorBits) -> Vec<u64> {
    set_bits(content).map(|bit| sector * SECTOR_BITS + bit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_sparse_bitmap_is_a_set_of_numbers(
            steps in prop::collection::vec((any::<bool>(), 0u64..9000, 0u64..5000), 1..30)
        ) {
            let (mut bits, mut model) = (SparseBits::default(), BTreeSet::new());
            for (set, start, length) in steps {
                let range = start..start + length;
                let mut touched = BTreeSet::new();
                let before = model.clone();
                if set {
                    bits.set(range.clone(), |s| { touched.insert(s); });
                    model.extend(range.clone());
                } else {
                    let mut gone = SparseBits::default();
                    gone.set(range.clone(), |_| ());
                    bits.subtract(&gone, |s| { touched.insert(s); });
                    model.retain(|bit| !range.contains(bit));
                }
                let changed: BTreeSet<u64> =
                    before.symmetric_difference(&model).map(|bit| bit / SECTOR_BITS).collect();
                prop_assert_eq!(&touched, &changed);
                prop_assert_eq!(bits.contains(range.clone()), range.clone().all(|bit| model.contains(&bit)));
            }
            prop_assert_eq!(bits.count(), model.len() as u64);
            let window = 1000u64..6000;
            let inside: Vec<u64> = bits.runs_in(window.clone()).into_iter().flatten().collect();
            prop_assert_eq!(inside, model.range(window).copied().collect::<Vec<_>>());
            let (mut other, mut united) = (SparseBits::default(), model.clone());
            other.set(3000..5000, |_| ());
            bits.union(&other, |_| ());
            united.extend(3000..5000);
            prop_assert_eq!(bits.count(), united.len() as u64);
            bits.subtract(&other, |_| ());
            model.retain(|bit| !(3000..5000).contains(bit));
            prop_assert_eq!(bits.count(), model.len() as u64);
            let listed: Vec<u64> = bits.runs_in(0..20_000).into_iter().flatten().collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sector_checks_only_in_its_own_place_and_with_every_bit_right() {
        let mut bits = [0; BITS_BYTES];
        bits[17] = 0x81;
        let seed = sector_seed(&[7; 16], 1, 3);
        let bytes = encode_sector(&bits, seed);
        assert_eq!(parse_sector(&bytes, seed), Some(bits));
        for wrong in [sector_seed(&[7; 16], 1, 4), sector_seed(&[7; 16], 2, 3), sector_seed(&[8; 16], 1, 3)] {
            assert_eq!(parse_sector(&bytes, wrong), None);
        }
        for bit in 0..SECTOR_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_sector(&flipped, seed), None, "bit {bit}");
        }
        assert_eq!(parse_sector(&[0; SECTOR_BYTES], seed), None, "a sector that was never written");
    }
}
