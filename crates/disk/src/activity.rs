//! When how much was written, read from the indexes of kept logs: no data is looked at.
//!
//! Entries stand in the order in which they reached the disk, and their times follow it but for microseconds: a write is
//! given its time before it waits for its turn. What is *before* a time here is what [`crate::apply_logs_until`] would
//! apply for it: the entries up to the first later one.

use std::collections::VecDeque;
use std::path::Path;

use secondsite_hrl::{Entry, LogReader, Operation};

use crate::error::Result;

/// What is counted and listed.
#[derive(Debug, Clone, Copy)]
pub struct ActivityWindow {
    /// Entries before and behind it are listed, Unix nanoseconds.
    pub around_ns: u64,
    /// Start of the first interval, Unix nanoseconds.
    pub from_ns: u64,
    /// Length of an interval; more than 0.
    pub interval_ns: u64,
    /// How many there are.
    pub interval_count: usize,
    /// Entries listed on each side, at most.
    pub entries_max: usize,
}

/// What was written in one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntervalActivity {
    /// Writes with data.
    pub write_count: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Bytes that were zeroed or given back: not data.
    pub zero_bytes: u64,
}

/// What logs say of a window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogActivity {
    /// As many as were asked for.
    pub intervals: Vec<IntervalActivity>,
    /// The last entries that are applied for the time asked for, in the order of the disk.
    pub before: Vec<Entry>,
    /// The first ones that are not.
    pub after: Vec<Entry>,
}

/// Counts and lists the entries of `logs` of one disk, given in their order.
///
/// # Errors
/// LOG_CORRUPT and the other codes of a damaged log, LOG_READ_FAILED.
pub fn log_activity(logs: &[&Path], window: &ActivityWindow) -> Result<LogActivity> {
    let mut reading =
        Reading { window, found: LogActivity::default(), before: VecDeque::new(), is_past: false };
    reading.found.intervals = vec![IntervalActivity::default(); window.interval_count];
    for path in logs {
        LogReader::open(path)?.entries()?.for_each(|entry| {
            reading.take(entry);
            Ok(())
        })?;
    }
    reading.found.before = reading.before.into();
    Ok(reading.found)
}

struct Reading<'a> {
    window: &'a ActivityWindow,
    found: LogActivity,
    before: VecDeque<Entry>,
    is_past: bool,
}

impl Reading<'_> {
    fn take(&mut self, entry: &Entry) {
        self.count(entry);
        self.is_past |= entry.time_ns > self.window.around_ns;
        if self.is_past {
            if self.found.after.len() < self.window.entries_max {
                self.found.after.push(*entry);
            }
            return;
        }
        self.before.push_back(*entry);
        if self.before.len() > self.window.entries_max {
            self.before.pop_front();
        }
    }

    fn count(&mut self, entry: &Entry) {
        let Some(since_ns) = entry.time_ns.checked_sub(self.window.from_ns) else { return };
        let number = usize::try_from(since_ns / self.window.interval_ns.max(1)).unwrap_or(usize::MAX);
        let Some(interval) = self.found.intervals.get_mut(number) else { return };
        let length_bytes = u64::from(entry.length_bytes);
        if entry.operation == Operation::Write {
            interval.write_count += 1;
            interval.write_bytes += length_bytes;
        } else {
            interval.zero_bytes += length_bytes;
        }
    }
}

/// An entry found by its sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundEntry {
    /// Which of the logs has it.
    pub log_index: usize,
    /// Its time, Unix nanoseconds.
    pub time_ns: u64,
    /// The latest time of it and of what was logged before it: every write of another disk that was answered before one
    /// of these began is not later.
    pub latest_ns: u64,
}

/// Finds an entry among `logs` of one disk, given in their order.
///
/// # Errors
/// As [`log_activity`].
pub fn find_entry(logs: &[&Path], sequence: u64) -> Result<Option<FoundEntry>> {
    let Some(log_index) = log_of(logs, sequence)? else { return Ok(None) };
    // Writes wait for their turn for microseconds: what is in doubt reaches one log back at most.
    let before_ns = match log_index.checked_sub(1) {
        Some(before) => latest_of(&LogReader::open(logs[before])?, u64::MAX)?.1,
        None => 0,
    };
    let (time_ns, latest_ns) = latest_of(&LogReader::open(logs[log_index])?, sequence)?;
    Ok(Some(FoundEntry { log_index, time_ns, latest_ns: latest_ns.max(before_ns) }))
}

/// Numbers ascend, so the log is found by bisection; where a disk was tracked anew they do not, and all are looked at.
fn log_of(logs: &[&Path], sequence: u64) -> Result<Option<usize>> {
    let has = |path: &Path| -> Result<bool> {
        let reader = LogReader::open(path)?;
        Ok(sequence.wrapping_sub(reader.first_sequence()) < reader.entry_count())
    };
    let (mut low, mut high) = (0, logs.len());
    while low < high {
        let middle = (low + high) / 2;
        if LogReader::open(logs[middle])?.first_sequence() <= sequence {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if let Some(found) = low.checked_sub(1)
        && has(logs[found])?
    {
        return Ok(Some(found));
    }
    for (index, path) in logs.iter().enumerate() {
        if has(path)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The time of the last entry up to a sequence number, and the latest one of all of them.
fn latest_of(reader: &LogReader, sequence: u64) -> Result<(u64, u64)> {
    let (mut time_ns, mut latest_ns) = (0, 0);
    reader.entries()?.for_each(|entry| {
        if entry.sequence <= sequence {
            time_ns = entry.time_ns;
            latest_ns = latest_ns.max(time_ns);
        }
        Ok(())
    })?;
    Ok((time_ns, latest_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogWriter, index_path};
    use std::path::PathBuf;

    /// (time, bytes, is it a write) of each entry.
    fn log(folder: &Path, number: u8, entries: &[(u64, u64, bool)]) -> PathBuf {
        let path = folder.join(format!("{number}.hrl"));
        let files =
            (FsLogFile::create_new(&path).unwrap(), FsLogFile::create_new(&index_path(&path)).unwrap());
        let options = LogOptions {
            id: LogId([number; 16]),
            previous_id: LogId::NONE,
            disk_id: [9; 16],
            created_ns: 0,
            first_sequence: u64::from(number) << 21,
            key: [3; 32],
            keep_space: false,
        };
        let mut writer = LogWriter::create(files.0, files.1, options).unwrap();
        for &(time_ns, length_bytes, is_write) in entries {
            let data = vec![7; length_bytes as usize];
            let append = if is_write {
                Append::write(0, &data, time_ns)
            } else {
                Append::discard(0, length_bytes, time_ns)
            };
            writer.append(&[append]).unwrap();
        }
        writer.seal(1000).unwrap();
        path
    }

    fn window(around_ns: u64, entries_max: usize) -> ActivityWindow {
        ActivityWindow { around_ns, from_ns: 100, interval_ns: 50, interval_count: 3, entries_max }
    }

    #[test]
    fn intervals_count_data_and_zeros_apart_and_nothing_outside_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let first = log(folder.path(), 1, &[(99, 512, true), (100, 1024, true), (149, 512, true)]);
        let second = log(folder.path(), 2, &[(150, 4096, false), (249, 2048, true), (250, 512, true)]);
        let found = log_activity(&[&first, &second], &window(0, 0)).unwrap();
        let counted =
            |write_count, write_bytes, zero_bytes| IntervalActivity { write_count, write_bytes, zero_bytes };
        assert_eq!(found.intervals, [counted(2, 1536, 0), counted(0, 0, 4096), counted(1, 2048, 0)]);
        assert!(found.before.is_empty() && found.after.is_empty());
    }

    #[test]
    fn the_entries_nearest_to_a_time_are_listed_as_they_would_be_applied_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let times = [110, 120, 121, 119, 130].map(|time_ns| (time_ns, 512, true));
        let path = log(folder.path(), 1, &times);
        let found = log_activity(&[&path], &window(120, 2)).unwrap();
        let times = |entries: &[Entry]| entries.iter().map(|entry| entry.time_ns).collect::<Vec<_>>();
        // 119 was logged behind a later one, so 120 ends before it.
        assert_eq!((times(&found.before), times(&found.after)), (vec![110, 120], vec![121, 119]));
    }

    #[test]
    fn an_entry_is_found_by_its_number_with_the_latest_time_up_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = log(folder.path(), 1, &[(110, 512, true), (140, 512, true)]);
        let second = log(folder.path(), 2, &[(139, 512, true), (150, 512, true), (145, 512, true)]);
        let logs = [first.as_path(), second.as_path()];
        let found = |sequence| {
            find_entry(&logs, sequence)
                .unwrap()
                .map(|found| (found.log_index, found.time_ns, found.latest_ns))
        };
        assert_eq!(found((1 << 21) + 1), Some((0, 140, 140)));
        assert_eq!(found(2 << 21), Some((1, 139, 140)));
        assert_eq!(found((2 << 21) + 2), Some((1, 145, 150)));
        assert_eq!([found((1 << 21) + 2), found((2 << 21) + 3), found(0)], [None; 3]);
    }
}
