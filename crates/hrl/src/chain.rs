//! The chain of a disk's logs: PreviousUniqueId of each is UniqueId of the one before. A gap or a fork is an error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{HrlError, Place, Result};
use crate::file::FsLogFile;
use crate::header::LogHeader;
use crate::id::LogId;
use crate::recover::read_header;

/// Where UniqueId and PreviousUniqueId stand in the header ([MS-HRL] 2.2).
const ID_OFFSET: u64 = 60;
const PREVIOUS_ID_OFFSET: u64 = 76;
const DISK_ID_OFFSET: u64 = 110;

/// A log as a link of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLink {
    /// The log, for errors.
    pub path: PathBuf,
    /// UniqueId.
    pub id: LogId,
    /// PreviousUniqueId.
    pub previous_id: LogId,
    /// The disk; `None` in version 1, which does not say.
    pub disk_id: Option<[u8; 16]>,
}

impl ChainLink {
    /// The link that a header describes.
    pub fn new(path: &Path, header: &LogHeader) -> Self {
        let (id, previous_id, disk_id) = (header.id, header.previous_id, header.disk_id);
        Self { path: path.to_path_buf(), id, previous_id, disk_id }
    }

    /// Reads the header of a log.
    ///
    /// # Errors
    /// As [`read_header`], and LOG_READ_FAILED.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::new(path, &read_header(&FsLogFile::open_read_only(path)?)?))
    }
}

/// Checks that logs, in the order given, form one chain of one disk. What comes before the first is not looked at.
///
/// # Errors
/// LOG_CHAIN_FORK when a log comes twice, two follow the same one, or a log is of another disk; LOG_CHAIN_GAP when
/// one is missing between two others.
pub fn verify_chain(links: &[ChainLink]) -> Result<()> {
    let mut seen: HashMap<LogId, usize> = HashMap::new();
    let mut followed: HashMap<LogId, usize> = HashMap::new();
    for (number, link) in links.iter().enumerate() {
        refuse_fork(links, link, seen.insert(link.id, number), followed.insert(link.previous_id, number))?;
        let Some(before) = number.checked_sub(1).map(|n| &links[n]) else { continue };
        if link.previous_id != before.id {
            let reason = format!(
                "follows log {}, but the one before it is {} ({})",
                link.previous_id,
                before.id,
                before.path.display()
            );
            return Err(HrlError::ChainGap(Place::new(&link.path, PREVIOUS_ID_OFFSET, reason)));
        }
        if let (Some(disk), Some(disk_before)) = (link.disk_id, before.disk_id)
            && disk != disk_before
        {
            let reason = format!("belongs to another disk than {}", before.path.display());
            return Err(HrlError::ChainFork(Place::new(&link.path, DISK_ID_OFFSET, reason)));
        }
    }
    Ok(())
}

fn refuse_fork(
    links: &[ChainLink],
    link: &ChainLink,
    twin: Option<usize>,
    rival: Option<usize>,
) -> Result<()> {
    if let Some(twin) = twin {
        let reason = format!("log {} comes twice, first as {}", link.id, links[twin].path.display());
        return Err(HrlError::ChainFork(Place::new(&link.path, ID_OFFSET, reason)));
    }
    if let Some(rival) = rival {
        let reason = format!("follows log {}, as {} does", link.previous_id, links[rival].path.display());
        return Err(HrlError::ChainFork(Place::new(&link.path, PREVIOUS_ID_OFFSET, reason)));
    }
    Ok(())
}
