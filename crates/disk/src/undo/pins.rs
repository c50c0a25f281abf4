//! Pins: a point that somebody reads has a locked file in `pins/`, so that it is not expired meanwhile.
//!
//! The lock ends with the process that reads, so a pin whose file can be locked is dead and is removed. Who opens a view
//! pins the point first and looks into the store's database afterwards, who expires a point marks it there first and
//! looks for pins afterwards: so one of the two always sees the other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{DiskError, Place, Result};
use crate::tracked::Random;

/// A pinned point; unpinned when it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    path: PathBuf,
    _lock: File,
}

impl Pin {
    /// Pins a point of a folder.
    pub(crate) fn take(folder: &Path, point: u64, random: &Random) -> Result<Self> {
        let pins = folder.join("pins");
        fs::create_dir_all(&pins).map_err(|e| DiskError::open(&pins, e))?;
        loop {
            let mut id = [0; 8];
            random(&mut id);
            let path = pins.join(format!("{point:012}-{:016x}", u64::from_le_bytes(id)));
            let fail = |e| DiskError::open(&path, e);
            let file =
                OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(fail)?;
            // Somebody who looks for dead pins may hold it for a moment, and remove it; then the next one is taken.
            file.lock_shared().map_err(fail)?;
            if is_still(&path, &file).map_err(fail)? {
                return Ok(Self { path, _lock: file });
            }
        }
    }
}

fn is_still(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(there) => file.metadata().map(|held| (held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // A file that stays behind is found dead by the next who looks.
        let _ = fs::remove_file(&self.path);
    }
}

impl Pin {
    /// Whether anybody else reads a point of the same folder.
    pub(crate) fn has_company(&self) -> Result<bool> {
        let pins = self.path.parent().unwrap_or(Path::new("."));
        let fail = |e| DiskError::open(pins, e);
        for entry in fs::read_dir(pins).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.file_name() != self.path.file_name() && is_alive(&path).map_err(fail)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The points of a folder that somebody reads at the moment, in order, each once for each of its readers. Pins of the dead
/// are removed.
///
/// # Errors
/// ACCESS_DENIED, DISK_READ_FAILED.
pub fn pinned_points(folder: &Path) -> Result<Vec<u64>> {
    let pins = folder.join("pins");
    let fail = |e| DiskError::open(&pins, e);
    let entries = match fs::read_dir(&pins) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut points = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let point = entry.file_name().to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
        if let Some(point) = point
            && is_alive(&entry.path()).map_err(fail)?
        {
            points.push(point);
        }
    }
    points.sort_unstable();
    Ok(points)
}

fn is_alive(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(path); // Somebody else may have been faster.
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Refuses to go on while a point that `is_meant` is read.
pub(super) fn refuse_if_pinned(folder: &Path, is_meant: impl Fn(u64) -> bool) -> Result<()> {
    match pinned_points(folder)?.into_iter().find(|point| is_meant(*point)) {
        Some(point) => {
            Err(DiskError::Busy(Place::whole(folder), format!("recovery point {point} is being read")))
        }
        None => Ok(()),
    }
}
