//! The epoch of an undo folder: a number that moves whenever its segments do, shared by all processes.
//!
//! Whoever saves moves it after the segment is in place and before the image is written; whoever merges, before the old
//! files go. A reader takes it before and after it looked at the folder or the image: if it did not move, what was looked
//! at belongs together. It is read with one `pread` of eight aligned bytes, which the page cache copies whole.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | number of the next save, times 2^24, plus changes by merging modulo 2^24 |
//! | 8 | 8 | saves below this one were dropped |
//!
//! Nothing here needs to be durable before a save goes on: after a power loss no reader is left, and the names in the
//! folder tell at least as much. Only a drop is made durable first, so that dropped saves are not missed later.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use secondsite_hrl::faults::rules::{FileOperation, permit};

use crate::error::{DiskError, Place, Result};

const CHANGE_BITS: u32 = 24;

/// The epoch file of a folder, open.
#[derive(Debug)]
pub(crate) struct Epoch {
    file: File,
    path: PathBuf,
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Moves with every change.
    pub(crate) value: u64,
    /// Saves below this one were dropped.
    pub(crate) dropped: u64,
}

impl State {
    /// Number of the next save.
    pub(crate) fn next_save(&self) -> u64 {
        self.value >> CHANGE_BITS
    }
}

impl Epoch {
    /// Opens the file of a folder, which must exist; makes it when there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("epoch");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|e| DiskError::open(&path, e))?;
        Ok(Self { file, path })
    }

    /// The number alone, for a reader's fast path.
    pub(crate) fn value(&self) -> Result<u64> {
        self.word(0)
    }

    /// All of it.
    pub(crate) fn state(&self) -> Result<State> {
        Ok(State { value: self.word(0)?, dropped: self.word(8)? })
    }

    /// Says that save `save` is in place.
    pub(crate) fn note_save(&self, save: u64) -> Result<()> {
        self.change(|value| value.max((save + 1) << CHANGE_BITS))
    }

    /// Says that segments were replaced.
    pub(crate) fn note_change(&self) -> Result<()> {
        self.change(|value| {
            let mask = (1 << CHANGE_BITS) - 1;
            value & !mask | value.wrapping_add(1) & mask
        })
    }

    /// Says, durably, that saves below `save` are dropped.
    pub(crate) fn note_dropped(&self, save: u64) -> Result<()> {
        let dropped = self.word(8)?.max(save);
        self.write(8, dropped)?;
        let synced = permit(&self.path, FileOperation::Sync).and_then(|()| self.file.sync_data());
        synced.map_err(|_| DiskError::SyncFailed(Place::whole(&self.path)))
    }

    fn change(&self, next: impl Fn(u64) -> u64) -> Result<()> {
        self.file.lock().map_err(|e| DiskError::write(Place::whole(&self.path), e))?;
        let changed = self.word(0).and_then(|value| self.write(0, next(value)));
        // An unlock that fails leaves the lock to the end of this opening.
        let _ = self.file.unlock();
        changed
    }

    fn word(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        match self.file.read_at(&mut bytes, offset) {
            Ok(8) => Ok(u64::from_le_bytes(bytes)),
            Ok(_) => Ok(0), // A new file.
            Err(e) => Err(DiskError::ReadFailed(Place::new(&self.path, offset, 8), e)),
        }
    }

    fn write(&self, offset: u64, value: u64) -> Result<()> {
        let written = self.file.write_all_at(&value.to_le_bytes(), offset);
        written.map_err(|e| DiskError::write(Place::new(&self.path, offset, 8), e))
    }
}
