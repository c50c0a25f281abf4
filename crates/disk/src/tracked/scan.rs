//! What lies in the tracking directory: the logs of a disk, each with what it turned out to be.

use std::path::Path;
use std::sync::Arc;

use secondsite_hrl::{
    FsLogFile, HrlError, LogFile, LogReader, ReadOptions, SealedLog, index_path, read_header, unix_ns,
};

use super::files::{File, Names, TrackedFile, file_error};
use super::options::TrackOptions;
use super::state::QueuedLog;
use crate::error::{DiskError, Result};

/// Sizes up to which log and index of ours hold no entry: their headers and the empty first block.
const EMPTY_LOG_BYTES: u64 = 8192;
const EMPTY_INDEX_BYTES: u64 = 4096;

/// What a log file turned out to be.
pub(crate) enum Found {
    /// Sealed, and its index is whole.
    Sealed(Box<(QueuedLog, LogReader<File>)>),
    /// Not sealed: to be recovered.
    Open,
    /// Never used: nothing was ever appended to it.
    Unused,
    /// Of another disk.
    Foreign,
    /// Neither can be said.
    Damaged(HrlError),
}

/// The numbers of the logs in the folder, ascending. Indexes whose log is gone are removed.
pub(crate) fn log_numbers(options: &TrackOptions, names: &Names) -> Result<Vec<u64>> {
    let listed = options.files.names(&names.folder).map_err(|e| file_error(&names.folder, "list", e))?;
    let mut numbers: Vec<u64> = listed.iter().filter_map(|name| names.number_of(name)).collect();
    numbers.sort_unstable();
    for name in &listed {
        let log_name = name.strip_suffix(".hrx").map(|stem| format!("{stem}.hrl"));
        let orphan =
            log_name.and_then(|log| names.number_of(&log)).filter(|n| numbers.binary_search(n).is_err());
        if orphan.is_some() {
            let path = names.folder.join(name);
            options.files.remove(&path).map_err(|e| file_error(&path, "remove", e))?;
        }
    }
    Ok(numbers)
}

/// Opens log and index.
pub(crate) fn open_pair(options: &TrackOptions, path: &Path) -> std::result::Result<(File, File), HrlError> {
    let open = |path: &Path| {
        let file = options.files.open(path).map_err(|e| match file_error(path, "open", e) {
            DiskError::Log(e) => e,
            other => HrlError::Corrupt(secondsite_hrl::Place {
                path: path.to_path_buf(),
                offset: 0,
                reason: other.to_string(),
            }),
        })?;
        Ok(Arc::new(TrackedFile::new(file, options.log_fault.clone())))
    };
    Ok((open(path)?, open(&index_path(path))?))
}

/// Looks at one log.
pub(crate) fn look(options: &TrackOptions, path: &Path) -> Found {
    match look_closer(options, path) {
        Ok(found) => found,
        Err(e) if was_never_used(options, path) || lacks_an_index_yet(options, path) => {
            drop(e); // A crash while it was made.
            Found::Unused
        }
        Err(e) => Found::Damaged(e),
    }
}

fn look_closer(options: &TrackOptions, path: &Path) -> std::result::Result<Found, HrlError> {
    let (log, index) = open_pair(options, path)?;
    let header = read_header(&log)?;
    if header.disk_id != Some(options.disk_id) {
        return Ok(Found::Foreign);
    }
    if !header.is_sealed() {
        return Ok(Found::Open);
    }
    let cut_time_ns = unix_ns(header.modified_seconds);
    let reader = LogReader::from_files(log, Some(index), ReadOptions::default())?;
    let sealed = describe(&reader, options.disk_id)?;
    let queued = QueuedLog { path: path.to_path_buf(), sealed, cut_time_ns };
    Ok(Found::Sealed(Box::new((queued, reader))))
}

/// An open log gets its first entry when its name and that of its index are durable. So one without any index was never
/// written to, or somebody took its index away: then the chain breaks where it is missing.
fn lacks_an_index_yet(options: &TrackOptions, path: &Path) -> bool {
    let is_missing =
        options.files.open(&index_path(path)).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    let is_open = || {
        let log = options.files.open(path).ok()?;
        read_header(&log).ok().map(|header| !header.is_sealed())
    };
    is_missing && is_open().unwrap_or(false)
}

fn was_never_used(options: &TrackOptions, path: &Path) -> bool {
    let size = |path: &Path| match options.files.open(path) {
        Ok(file) => file.size_bytes().ok(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(0),
        Err(_) => None,
    };
    let is_empty = |size: Option<u64>, empty| size.is_some_and(|size| size <= empty);
    is_empty(size(path), EMPTY_LOG_BYTES) && is_empty(size(&index_path(path)), EMPTY_INDEX_BYTES)
}

/// What a sealed log holds, by its index.
pub(crate) fn describe<F: LogFile>(
    reader: &LogReader<F>,
    disk_id: [u8; 16],
) -> std::result::Result<SealedLog, HrlError> {
    let header = reader.header();
    let (mut data_bytes, mut first_time_ns, mut last_time_ns) = (0, 0, 0);
    reader.entries()?.for_each(|entry| {
        data_bytes += entry.data_bytes();
        if first_time_ns == 0 {
            first_time_ns = entry.time_ns;
        }
        last_time_ns = entry.time_ns;
        Ok(())
    })?;
    Ok(SealedLog {
        id: header.id,
        previous_id: header.previous_id,
        disk_id,
        first_sequence: reader.first_sequence(),
        next_sequence: reader.first_sequence() + header.entry_count,
        entry_count: header.entry_count,
        data_bytes,
        log_size_bytes: header.end_of_log,
        index_size_bytes: EMPTY_INDEX_BYTES + header.entry_count * 64,
        first_time_ns,
        last_time_ns,
    })
}

/// As [`describe`], of a file.
pub(crate) fn describe_file(path: &Path, disk_id: [u8; 16]) -> std::result::Result<SealedLog, HrlError> {
    let reader: LogReader<FsLogFile> = LogReader::open(path)?;
    describe(&reader, disk_id)
}
