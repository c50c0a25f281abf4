//! Released logs that wait to be written again: a file whose blocks are on the medium is cheaper to write, and much cheaper
//! to sync, than one that grows (no allocation, and so no commit of the file system's journal at each FLUSH).
//!
//! A spare has a name that no log has, so nothing of its earlier life is ever looked at. It gets header, first block and
//! a new index while it still has that name; index and log are renamed after that, in this order. So under the name of a
//! log there is never anything but that log: the rest of an earlier life behind its end carries the seals of another
//! key and is no part of it, as recovery knows.
//!
//! At most [`SPARES_MAX`] files of at most [`SPARE_BYTES_MAX`] are kept. An open deletes those it finds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secondsite_hrl::{LogOptions, LogWriter, index_path};

use super::disk::TrackedDisk;
use super::files::{File, Names, TrackedFile, file_error};
use super::options::TrackOptions;
use super::state::QueuedLog;
use crate::error::Result;

/// The open log and the one prepared behind it come back one after the other.
const SPARES_MAX: usize = 2;
/// Recovery reads a log to the end of its file, so a spare must not be long.
const SPARE_BYTES_MAX: u64 = 256 << 20;

impl TrackedDisk {
    /// Deletes a released log, or keeps its file for a later one.
    pub(super) fn retire_log(&self, log: &QueuedLog) -> Result<()> {
        let mut spares = self.spares.lock();
        let taken = (0..SPARES_MAX).map(|n| self.names.spare(n)).find(|name| !spares.contains(name));
        let Some(spare) = taken.filter(|_| log.sealed.log_size_bytes <= SPARE_BYTES_MAX) else {
            return self.remove_log(&log.path);
        };
        let files = &self.options.files;
        let kept = files.rename(&log.path, &spare).and_then(|()| files.remove(&index_path(&log.path)));
        if kept.is_err() {
            return self.remove_log(&log.path);
        }
        spares.push(spare);
        Ok(())
    }

    /// Deletes the spares: a closed disk leaves no files that mean nothing.
    pub(super) fn drop_spares(&self) {
        for spare in self.spares.lock().drain(..) {
            let _ = self.options.files.remove(&spare); // The next open tries again.
        }
    }

    /// A file to be written again, if there is one.
    pub(super) fn take_spare(&self) -> Option<PathBuf> {
        self.spares.lock().pop()
    }
}

/// Makes a log of a spare. The name it has then is not durable.
pub(super) fn recycle(
    options: &TrackOptions,
    spare: &Path,
    path: &Path,
    log_options: LogOptions,
) -> Result<LogWriter<File>> {
    let label = |file, path: &Path| Arc::new(TrackedFile::new(file, options.log_fault.clone()).named(path));
    let fail = |e: io::Error| file_error(spare, "write again", e);
    let (spare_index, index) = (index_path(spare), index_path(path));
    let files = &options.files;
    let writer = LogWriter::create(
        label(files.open(spare).map_err(fail)?, path),
        label(files.create(&spare_index).map_err(fail)?, &index),
        LogOptions { keep_space: true, ..log_options },
    )?;
    options.step("spare-written");
    files.rename(&spare_index, &index).map_err(fail)?;
    options.step("spare-index-renamed");
    files.rename(spare, path).map_err(fail)?;
    options.step("spare-renamed");
    Ok(writer)
}

/// Deletes the spares of an earlier life.
pub(super) fn remove_spares(options: &TrackOptions, names: &Names) -> Result<()> {
    for spare in (0..SPARES_MAX).map(|n| names.spare(n)) {
        for path in [index_path(&spare), spare] {
            options.files.remove(&path).map_err(|e| file_error(&path, "remove", e))?;
        }
    }
    Ok(())
}
