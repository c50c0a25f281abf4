//! A log file in memory that fails on command: for tests of this room and of those above it.
//!
//! It keeps two images, what was written and what was synced. [`MemoryLogFile::lose_power`] decides for each
//! 512-byte sector written since the last sync, by a seed, whether it reached the disk, and likewise for the size:
//! any loss, tearing and reordering that a disk with atomic sectors can produce. Real files fail by [`rules`].

pub mod rules;

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::file::LogFile;

const SECTOR: usize = 512;

/// A log file in memory. Share it in an `Arc` to crash it from outside.
#[derive(Debug)]
pub struct MemoryLogFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that may differ between the two.
    dirty: BTreeSet<usize>,
    space_bytes: Option<u64>,
    writes_until_failure: Option<u64>,
    torn_bytes: usize,
    syncs_fail: bool,
    counts: IoCounts,
}

/// How often a [`MemoryLogFile`] was called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Vectored writes.
    pub writes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Syncs.
    pub syncs: u64,
}

impl MemoryLogFile {
    /// An empty file with this name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), state: Mutex::default() }
    }

    /// A durable file with this content.
    pub fn with_content(path: impl Into<PathBuf>, content: Vec<u8>) -> Self {
        let file = Self::new(path);
        *file.state() = State { live: content.clone(), durable: content, ..State::default() };
        file
    }

    /// What a reader sees now.
    pub fn content(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    /// Changes the content, durably, behind everybody's back.
    pub fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let state = &mut *state;
        change(&mut state.live);
        state.durable.clone_from(&state.live);
        state.dirty.clear();
    }

    /// The disk is full: the file cannot grow past this size.
    pub fn limit_space(&self, space_bytes: Option<u64>) {
        self.state().space_bytes = space_bytes;
    }

    /// After `writes` more writes each one fails with EIO, having written `torn_bytes`.
    pub fn fail_writes_after(&self, writes: Option<u64>, torn_bytes: usize) {
        let mut state = self.state();
        state.writes_until_failure = writes;
        state.torn_bytes = torn_bytes;
    }

    /// Syncs fail from now on (or work again); a failed sync makes nothing durable.
    pub fn fail_syncs(&self, fail: bool) {
        self.state().syncs_fail = fail;
    }

    /// Calls so far.
    pub fn counts(&self) -> IoCounts {
        self.state().counts
    }

    /// The power goes: what was not synced is there, or not, as the seed decides. All faults are lifted.
    pub fn lose_power(&self, seed: u64) {
        let mut random = SplitMix(seed);
        let mut state = self.state();
        let (live, mut disk) = (std::mem::take(&mut state.live), std::mem::take(&mut state.durable));
        let size = surviving_size(&mut random, disk.len(), live.len());
        // From "all is lost" to "nearly all is there": whole blocks behind a lost sector need the latter.
        let lost_one_in = [1, 2, 16, 128][random.next() as usize % 4];
        disk.resize(disk.len().max(live.len()), 0);
        for sector in std::mem::take(&mut state.dirty) {
            let start = (sector * SECTOR).min(live.len());
            let end = (start + SECTOR).min(live.len());
            if !random.next().is_multiple_of(lost_one_in) {
                disk[start..end].copy_from_slice(&live[start..end]);
            }
        }
        disk.truncate(size);
        let counts = state.counts;
        *state = State { live: disk.clone(), durable: disk, counts, ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The size after a power loss: one of the two, or any sector between them.
fn surviving_size(random: &mut SplitMix, durable: usize, live: usize) -> usize {
    let (low, high) = (durable.min(live), durable.max(live));
    match random.next() % 4 {
        0 => durable,
        1 => live,
        _ => low + (random.next() as usize % ((high - low) / SECTOR + 1)) * SECTOR,
    }
}

impl State {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(data);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    /// How many of `length` bytes a write may put down, and the error that follows.
    fn allowed(&mut self, offset: u64, length: usize) -> (usize, Option<io::Error>) {
        match &mut self.writes_until_failure {
            Some(0) => return (self.torn_bytes.min(length), Some(io::Error::from_raw_os_error(5))),
            Some(left) => *left -= 1,
            None => {}
        }
        match self.space_bytes {
            Some(space) if offset + length as u64 > space => {
                let room = space.saturating_sub(offset).min(length as u64) as usize;
                (room, Some(io::ErrorKind::StorageFull.into()))
            }
            _ => (length, None),
        }
    }
}

impl LogFile for MemoryLogFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn write_all_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes = slices.iter().map(|slice| &**slice).collect::<Vec<_>>().concat();
        let mut state = self.state();
        state.counts.writes += 1;
        let (length, error) = state.allowed(offset, bytes.len());
        state.write(offset as usize, &bytes[..length]);
        error.map_or(Ok(()), Err)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        state.counts.reads += 1;
        state.counts.read_bytes += buffer.len() as u64;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(state.live.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        state.counts.syncs += 1;
        if state.syncs_fail {
            return Err(io::Error::from_raw_os_error(5));
        }
        state.durable.resize(state.live.len(), 0);
        for sector in std::mem::take(&mut state.dirty) {
            let start = (sector * SECTOR).min(state.live.len());
            let end = (start + SECTOR).min(state.live.len());
            state.durable[start..end].copy_from_slice(&state.live[start..end]);
        }
        Ok(())
    }

    fn set_size_bytes(&self, size_bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.space_bytes.is_some_and(|space| size_bytes > space) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (old, new) = (state.live.len(), size_bytes as usize);
        state.live.resize(new, 0);
        state.dirty.extend(old.min(new) / SECTOR..old.max(new).div_ceil(SECTOR));
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.state().live.len() as u64)
    }
}

/// SplitMix64: a seed replays a run.
#[derive(Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so an Option would only be in the way")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
