//! The segments in a folder: a consistent list of them, and how one gets there.
//!
//! A segment is written as `<kind>.unfinished.hrl`, sealed, and renamed into place, the index first; each rename is made
//! durable before the next step. So a log with a segment's name is whole, and whatever else lies there is left over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use secondsite_hrl::{Place as FilePlace, index_path, sync_folder};

use super::epoch::Epoch;
use super::name::SegmentName;
use crate::error::{DiskError, Place, Result};

/// Listings that a reader begins again because the folder changed meanwhile.
const LISTINGS_MAX: usize = 10_000;

/// An undo folder.
#[derive(Debug, Clone)]
pub(crate) struct UndoFolder {
    pub(crate) path: PathBuf,
}

/// The segments of a folder at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The epoch for which this holds.
    pub(crate) epoch: u64,
    /// Number of the next save.
    pub(crate) next_save: u64,
    /// Segments that count, from the oldest save to the newest.
    pub(crate) segments: Vec<SegmentName>,
    /// Segments that others replaced: a crash left them.
    pub(crate) replaced: Vec<SegmentName>,
    /// Saves that should be there and are not.
    pub(crate) gaps: Vec<Gap>,
}

/// Saves that are missing: a file was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Points up to this one cannot be relied on; `None` when no point can.
    pub(crate) through_point: Option<u64>,
}

impl Gap {
    /// Whether it spoils a point.
    pub(crate) fn concerns(&self, point: u64) -> bool {
        self.through_point.is_none_or(|through| point <= through)
    }

    /// What is told of it.
    pub(crate) fn damage(&self, folder: &Path) -> DiskError {
        DiskError::UndoDamaged(FilePlace { path: folder.to_path_buf(), offset: 0, reason: self.reason() })
    }

    /// Why it is damage.
    pub(crate) fn reason(&self) -> String {
        format!("the segments of saves {} to {} are missing", self.first, self.last)
    }
}

impl Listing {
    /// Segments of points from `point` on, from the oldest to the newest.
    pub(crate) fn since(&self, point: u64) -> Vec<SegmentName> {
        self.segments.iter().copied().filter(|name| name.point >= point).collect()
    }

    /// Segments of one point.
    pub(crate) fn of(&self, point: u64) -> Vec<SegmentName> {
        self.segments.iter().copied().filter(|name| name.point == point).collect()
    }
}

impl UndoFolder {
    /// A folder that is there.
    pub(crate) fn open(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// Makes the folder when it is not there.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            fs::create_dir_all(path).map_err(|e| DiskError::open(path, e))?;
            sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(Self::open(path))
    }

    /// Whether anything was ever saved here.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The epoch file.
    pub(crate) fn epoch(&self) -> Result<Epoch> {
        Epoch::open(&self.path)
    }

    /// The segments as they stand at one epoch.
    pub(crate) fn list(&self, epoch: &Epoch) -> Result<Listing> {
        let mut before = epoch.state()?;
        for _ in 0..LISTINGS_MAX {
            let names = self.names()?;
            let after = epoch.state()?;
            if before == after {
                return Ok(arrange(names, after.value, after.next_save(), after.dropped));
            }
            before = after;
        }
        Err(DiskError::Busy(Place::whole(&self.path), "its segments change without end".into()))
    }

    /// Whether what failed by a listing may have failed because segments were replaced since, and is to be tried again.
    pub(crate) fn is_outdated(epoch: &Epoch, listing: &Listing) -> Result<bool> {
        Ok(epoch.value()? != listing.epoch)
    }

    fn names(&self) -> Result<Vec<SegmentName>> {
        let fail = |e| DiskError::open(&self.path, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(fail)? {
            names.extend(SegmentName::parse(&entry.map_err(fail)?.file_name().to_string_lossy()));
        }
        Ok(names)
    }

    /// Takes a lock that ends with what is returned.
    ///
    /// # Errors
    /// DISK_IN_USE when somebody has it.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|e| DiskError::open(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(DiskError::Busy(Place::whole(&self.path), format!("somebody else holds {name}")))
            }
            Err(TryLockError::Error(e)) => Err(DiskError::open(&path, e)),
        }
    }

    /// Where a segment is written until it is whole.
    pub(crate) fn unfinished(&self, kind: &str) -> PathBuf {
        self.path.join(format!("{kind}.unfinished.hrl"))
    }

    /// Puts a sealed log in place, durably.
    pub(crate) fn put(&self, unfinished: &Path, name: &SegmentName) -> Result<()> {
        let place = name.path(&self.path);
        for (from, to) in [(index_path(unfinished), index_path(&place)), (unfinished.into(), place)] {
            fs::rename(&from, &to).map_err(|e| DiskError::write(Place::whole(&to), e))?;
            sync_folder(&self.path)?;
        }
        Ok(())
    }

    /// Deletes segments, the log first: an index alone is nothing.
    pub(crate) fn delete(&self, names: &[SegmentName]) -> Result<()> {
        for name in names {
            let path = name.path(&self.path);
            for path in [&path, &index_path(&path)] {
                match fs::remove_file(path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(DiskError::write(Place::whole(path), e));
                    }
                    _ => {}
                }
            }
        }
        if names.is_empty() { Ok(()) } else { Ok(sync_folder(&self.path)?) }
    }
}

/// Tells segments that count from left-over ones, and finds gaps.
fn arrange(mut names: Vec<SegmentName>, epoch: u64, next_save: u64, dropped: u64) -> Listing {
    names.sort_by_key(|name| (name.first, name.point));
    let is_left_over =
        |name: &SegmentName| name.last < dropped || names.iter().any(|other| name.is_replaced_by(other));
    let (replaced, segments): (Vec<SegmentName>, Vec<SegmentName>) =
        names.iter().partition(|name| is_left_over(name));
    let newest = segments.iter().map(|name| name.last + 1).max().unwrap_or(0);
    let mut gaps = Vec::new();
    // An epoch file that was lost knows nothing; then the files are believed.
    let mut at = if next_save == 0 { segments.first().map_or(0, |name| name.first) } else { dropped };
    for name in &segments {
        if name.first > at {
            gaps.push(Gap { first: at, last: name.first - 1, through_point: Some(name.point) });
        }
        at = at.max(name.last + 1);
    }
    if next_save > at {
        gaps.push(Gap { first: at, last: next_save - 1, through_point: None });
    }
    // A power loss may take the number of the next save back, but not what was dropped: a save below it would not count.
    Listing { epoch, next_save: next_save.max(newest).max(dropped), segments, replaced, gaps }
}
