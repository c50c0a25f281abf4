//! A device with a volatile cache: what was written since the last flush may be lost, torn or reordered when the power goes.
//!
//! Reads see every write at once. The medium gets them at a flush, in order. At a crash each sector of 512 bytes holds one
//! of the versions it had since the last flush, because the cache may have written it out at any moment and in any order:
//!
//! | seed % 4 | what survives |
//! |---|---|
//! | 0 | nothing |
//! | 1 | a prefix of the writes, the last of them torn at a sector |
//! | 2 | each write whole or not at all |
//! | 3 | each sector of each write for itself |

use std::path::Path;

use parking_lot::Mutex;

use super::memory::MemoryDevice;
use crate::device::{BlockDevice, Extent, check_range};
use crate::error::{DiskError, Place, Result};

const SECTOR_BYTES: u64 = 512;

/// A write that is not durable; without data it is zeros.
#[derive(Debug)]
struct Unsynced {
    offset: u64,
    length_bytes: u64,
    data: Option<Vec<u8>>,
}

impl Unsynced {
    fn sector_count(&self) -> u64 {
        self.length_bytes / SECTOR_BYTES
    }

    /// Puts some sectors of the write onto the medium.
    fn put(&self, medium: &MemoryDevice, first_sector: u64, sector_count: u64) -> Result<()> {
        if sector_count == 0 {
            return Ok(());
        }
        let (start, length_bytes) = (first_sector * SECTOR_BYTES, sector_count * SECTOR_BYTES);
        match &self.data {
            Some(data) => {
                let range = start as usize..(start + length_bytes) as usize;
                medium.write_at(self.offset + start, &data[range])
            }
            None => medium.discard(self.offset + start, length_bytes),
        }
    }
}

#[derive(Debug)]
struct State {
    /// What reads see.
    cache: MemoryDevice,
    /// What is durable.
    medium: MemoryDevice,
    unsynced: Vec<Unsynced>,
    has_power: bool,
}

/// A disk in memory whose unflushed writes can be lost.
#[derive(Debug)]
pub struct PowerLossDevice {
    /// Path and geometry, which need no lock.
    shape: MemoryDevice,
    state: Mutex<State>,
}

impl PowerLossDevice {
    /// A disk of holes with 512-byte sectors.
    ///
    /// # Panics
    /// When the size is 0 or not a multiple of 512.
    pub fn new(name: &str, size_bytes: u64) -> Self {
        Self::over(MemoryDevice::new(name, size_bytes))
    }

    /// A disk that durably holds what `medium` holds.
    pub fn over(medium: MemoryDevice) -> Self {
        let shape = MemoryDevice::with_sectors(
            &medium.path().to_string_lossy(),
            medium.size_bytes(),
            medium.sector_size_bytes(),
        );
        let state = State { cache: medium.clone(), medium, unsynced: Vec::new(), has_power: true };
        Self { shape, state: Mutex::new(state) }
    }

    /// The power goes: this device fails from now on, and what is returned is the disk as it comes up again.
    ///
    /// # Panics
    /// When the power is gone already.
    pub fn crash(&self, seed: u64) -> Self {
        let mut state = self.state.lock();
        assert!(std::mem::replace(&mut state.has_power, false), "a second crash of one device");
        let medium = state.medium.clone();
        lose(&std::mem::take(&mut state.unsynced), &medium, seed);
        Self::over(medium)
    }

    /// What is durable now.
    pub fn durable_bytes(&self) -> Vec<u8> {
        self.state.lock().medium.bytes()
    }

    /// What reads see now.
    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().cache.bytes()
    }

    /// Writes since the last flush.
    pub fn unsynced_count(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// The state, while there is power.
    fn powered(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.has_power {
            return Ok(state);
        }
        let error = std::io::Error::from_raw_os_error(libc::ENODEV);
        Err(DiskError::WriteFailed(Place::whole(self.path()), error))
    }
}

/// Puts what survives of the writes onto the medium.
fn lose(unsynced: &[Unsynced], medium: &MemoryDevice, seed: u64) {
    let mut random = SplitMix(seed);
    let prefix = random.below(unsynced.len() as u64 + 1);
    for (index, write) in unsynced.iter().enumerate() {
        let sectors = write.sector_count();
        let put = |first, count| write.put(medium, first, count).unwrap_or_else(|e| unreachable!("{e}"));
        match seed % 4 {
            0 => {}
            1 if (index as u64) < prefix => put(0, sectors),
            1 if index as u64 == prefix => put(0, random.below(sectors)),
            1 => {}
            2 => put(0, sectors * random.below(2)),
            _ => (0..sectors).for_each(|sector| put(sector, random.below(2))),
        }
    }
}

/// A small generator of good numbers from any seed.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

impl BlockDevice for PowerLossDevice {
    fn path(&self) -> &Path {
        self.shape.path()
    }

    fn size_bytes(&self) -> u64 {
        self.shape.size_bytes()
    }

    fn sector_size_bytes(&self) -> u32 {
        self.shape.sector_size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.powered()?.cache.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(self, offset, data.len() as u64)?;
        let mut state = self.powered()?;
        state.cache.write_at(offset, data)?;
        let length_bytes = data.len() as u64;
        state.unsynced.push(Unsynced { offset, length_bytes, data: Some(data.to_vec()) });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        check_range(self, offset, length_bytes)?;
        let mut state = self.powered()?;
        state.cache.write_zeroes(offset, length_bytes, may_unmap)?;
        let data = (!may_unmap).then(|| vec![0; length_bytes as usize]);
        state.unsynced.push(Unsynced { offset, length_bytes, data });
        Ok(())
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_zeroes(offset, length_bytes, true)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.powered()?;
        for write in std::mem::take(&mut state.unsynced) {
            write.put(&state.medium, 0, write.sector_count())?;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.powered()?.cache.extent_at(offset, end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SIZE: u64 = 64 * 512;

    /// A flushed disk of ones with three unflushed writes: all of it 2, the second half 3, then a discard of sector 0.
    fn written() -> PowerLossDevice {
        let disk = PowerLossDevice::new("d", SIZE);
        disk.write_at(0, &[1; SIZE as usize]).expect("a write");
        disk.flush().expect("a flush");
        disk.write_at(0, &[2; SIZE as usize]).expect("a write");
        disk.write_at(SIZE / 2, &[3; SIZE as usize / 2]).expect("a write");
        disk.discard(0, 512).expect("a discard");
        disk
    }

    #[test]
    fn flushed_writes_survive_every_crash_and_reads_see_unflushed_ones() {
        for seed in 0..200 {
            let disk = PowerLossDevice::new("d", SIZE);
            disk.write_at(512, &[4; 1024]).expect("a write");
            disk.write_zeroes(1024, 512, seed % 2 == 0).expect("zeros");
            assert_eq!(disk.unsynced_count(), 2);
            let seen = disk.bytes();
            disk.flush().expect("a flush");
            assert_eq!((disk.durable_bytes(), disk.unsynced_count()), (seen.clone(), 0));
            assert_eq!(disk.crash(seed).bytes(), seen, "seed {seed}");
        }
    }

    #[test]
    fn each_sector_holds_one_of_its_versions_and_all_of_them_occur() {
        let mut seen = vec![HashSet::new(); SIZE as usize / 512];
        for seed in 0..400 {
            let after = written().crash(seed);
            assert_eq!(after.bytes(), after.durable_bytes(), "what comes up is on the medium");
            for (sector, bytes) in after.bytes().chunks(512).enumerate() {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "seed {seed}: a sector is written whole");
                seen[sector].insert(bytes[0]);
            }
        }
        assert_eq!(seen[0], HashSet::from([0, 1, 2]));
        assert!(seen[1..32].iter().all(|versions| *versions == HashSet::from([1, 2])));
        assert!(seen[32..].iter().all(|versions| *versions == HashSet::from([1, 2, 3])));
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        for seed in 0..40 {
            assert_eq!(written().crash(seed).bytes(), written().crash(seed).bytes());
        }
        assert_eq!(written().crash(0).bytes(), vec![1; SIZE as usize], "seed 0 loses everything");
    }

    #[test]
    fn a_device_without_power_does_nothing() {
        let disk = written();
        let after = disk.crash(3);
        let before = after.bytes();
        assert!(disk.write_at(0, &[9; 512]).is_err() && disk.flush().is_err());
        assert!(disk.read_at(0, &mut [0; 512]).is_err() && disk.discard(0, 512).is_err());
        assert_eq!(after.bytes(), before);
    }
}
