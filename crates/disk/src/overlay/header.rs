//! The first block of a map's file. All fields lie in its first sector, which a disk writes whole or not at all.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `SSTEOVL1` |
//! | 8 | 4 | version, 1 |
//! | 12 | 1 | 0 active, 1 settling, 2 settled |
//! | 16 | 8 | size of the disk in bytes |
//! | 24 | 8 | the base: a number that its owner chose |
//! | 32 | 8 | XXH3-64 of the boot id under which the live map was written |
//! | 504 | 8 | XXH3-64 of the bytes before |

use std::io::IoSlice;

use secondsite_hrl::{HrlError, LogFile, Place as FilePlace};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{DiskError, Result};

/// Bytes of the header with what is unused of it.
pub(super) const HEADER_BYTES: u64 = 4096;

const MAGIC: [u8; 8] = *b"SSTEOVL1";
const VERSION: u32 = 1;
const SECTOR_BYTES: usize = 512;
const CHECK: usize = SECTOR_BYTES - 8;

/// What an overlay is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayState {
    /// The base is only read.
    Active,
    /// The image is being made equal to the overlay.
    Settling,
    /// The image is all there is.
    Settled,
}

/// Who a map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) state: OverlayState,
    pub(super) size_bytes: u64,
    pub(super) base: u64,
    pub(super) boot: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = match self.state {
            OverlayState::Active => 0,
            OverlayState::Settling => 1,
            OverlayState::Settled => 2,
        };
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.boot.to_le_bytes());
        let check = xxh3_64(&bytes[..CHECK]);
        bytes[CHECK..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(super) fn read(file: &dyn LogFile) -> Result<Self> {
        let mut bytes = [0; SECTOR_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|e| read_error(file, 0, e))?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let damaged = |offset, reason: &str| {
            let (path, reason) = (file.path().to_path_buf(), reason.to_owned());
            Err(DiskError::OverlayDamaged(FilePlace { path, offset, reason }))
        };
        if bytes[..8] != MAGIC || xxh3_64(&bytes[..CHECK]) != word(CHECK) {
            return damaged(0, "the header of the map is damaged");
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return damaged(8, "written by a later version of this program");
        }
        let state = match bytes[12] {
            0 => OverlayState::Active,
            1 => OverlayState::Settling,
            2 => OverlayState::Settled,
            _ => return damaged(12, "a state that there is not"),
        };
        Ok(Self { state, size_bytes: word(16), base: word(24), boot: word(32) })
    }

    /// Writes it, and makes it and all that was written to the file before durable.
    pub(super) fn write(&self, file: &dyn LogFile) -> Result<()> {
        write_at(file, &self.encode(), 0)?;
        sync(file)
    }
}

pub(super) fn read_error(file: &dyn LogFile, offset: u64, error: std::io::Error) -> DiskError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        let place =
            FilePlace { path: file.path().to_path_buf(), offset, reason: "the map ends early".into() };
        return DiskError::OverlayDamaged(place);
    }
    let reason = format!("read: {error}");
    DiskError::Log(HrlError::ReadFailed(FilePlace { path: file.path().to_path_buf(), offset, reason }, error))
}

pub(super) fn write_at(file: &dyn LogFile, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(&mut [IoSlice::new(bytes)], offset).map_err(|e| {
        let place = crate::error::Place::new(file.path(), offset, bytes.len() as u64);
        DiskError::write(place, e)
    })
}

pub(super) fn sync(file: &dyn LogFile) -> Result<()> {
    file.sync_data().map_err(|_| DiskError::SyncFailed(crate::error::Place::whole(file.path())))
}
