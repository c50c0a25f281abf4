//! Applies sealed logs to an image: exact or refused.
//!
//! Every log is checked completely, against its index and against the size of the image, before the first byte of any of
//! them is written; the hash of each entry is checked once more on its way to the image. Applying again after a crash
//! changes nothing that is applied already, so whoever keeps the logs until this has returned loses nothing.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_hrl::{Entry, LogReader, Operation, ReadOptions};

use crate::device::BlockDevice;
use crate::error::{DiskError, Place, Result};

/// Data of neighbouring entries is gathered up to this before it is written.
const GATHER_BYTES: usize = 4 << 20;

/// What was done to the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Entries of all logs.
    pub entry_count: u64,
    /// Bytes of data written.
    pub written_bytes: u64,
    /// Bytes zeroed or given back.
    pub discarded_bytes: u64,
}

/// Where the entries of logs end that are applied in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Before the first entry that is later than this, Unix nanoseconds.
    Time(u64),
    /// Behind the entry with this sequence number of the last log, which tells writes apart that came at the same time.
    Sequence(u64),
}

impl Until {
    fn is_past(self, entry: &Entry) -> bool {
        match self {
            Self::Time(time_ns) => entry.time_ns > time_ns,
            Self::Sequence(sequence) => entry.sequence > sequence,
        }
    }
}

/// Writes the entries of `logs`, in order, to `image`, and syncs it.
///
/// `is_verified` says that the logs were verified since they last could have changed, so that they are not read twice.
///
/// # Errors
/// LOG_CORRUPT and the other codes of a damaged log, LOG_ENTRY_OUT_OF_RANGE: nothing was written. DISK_WRITE_FAILED,
/// DISK_FULL, DISK_SYNC_FAILED, ABORTED: a part may be written; apply the same logs again.
pub fn apply_logs(
    image: &dyn BlockDevice,
    logs: &[&Path],
    is_verified: bool,
    stop: &AtomicBool,
) -> Result<ApplyReport> {
    let size_bytes = image.size_bytes();
    if !is_verified {
        for path in logs {
            secondsite_hrl::verify(path, Some(size_bytes))?;
        }
    }
    Applier::new(image, Until::Time(u64::MAX), stop).apply_all(logs)
}

/// Writes the entries of `logs`, in order, to `image` as far as `until`, and syncs it: the state of a disk between two cuts.
///
/// # Errors
/// As [`apply_logs`].
pub fn apply_logs_until(
    image: &dyn BlockDevice,
    logs: &[&Path],
    until: Until,
    stop: &AtomicBool,
) -> Result<ApplyReport> {
    let applier = Applier::new(image, until, stop);
    for path in logs {
        secondsite_hrl::verify(path, Some(image.size_bytes()))?;
    }
    applier.apply_all(logs)
}

struct Applier<'a> {
    image: &'a dyn BlockDevice,
    until: Until,
    /// Whether the log at hand may end it.
    is_watching: bool,
    is_ended: bool,
    stop: &'a AtomicBool,
    report: ApplyReport,
    gathered: Vec<u8>,
    gathered_at: u64,
}

impl<'a> Applier<'a> {
    fn new(image: &'a dyn BlockDevice, until: Until, stop: &'a AtomicBool) -> Self {
        let report = ApplyReport::default();
        Self {
            image,
            until,
            is_watching: true,
            is_ended: false,
            stop,
            report,
            gathered: Vec::new(),
            gathered_at: 0,
        }
    }

    fn apply_all(mut self, logs: &[&Path]) -> Result<ApplyReport> {
        for (number, path) in logs.iter().enumerate() {
            // Logs before the one with the entry are wanted whole, whatever their numbers are.
            self.is_watching = matches!(self.until, Until::Time(_)) || number + 1 == logs.len();
            let disk_size_bytes = Some(self.image.size_bytes());
            let options = ReadOptions { disk_size_bytes, ..ReadOptions::default() };
            self.apply(&LogReader::open_with(path, options)?)?;
        }
        self.write_gathered()?;
        self.image.flush()?;
        Ok(self.report)
    }

    fn apply(&mut self, log: &LogReader) -> Result<()> {
        let mut entries = log.entries()?;
        let mut batch = Vec::new();
        while entries.next_batch(&mut batch)? {
            if self.stop.load(Ordering::Relaxed) {
                return Err(DiskError::Stopped(Place::whole(self.image.path())));
            }
            for entry in &batch {
                self.is_ended |= self.is_watching && self.until.is_past(entry);
                if self.is_ended {
                    return Ok(());
                }
                self.apply_entry(log, entry)?;
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, log: &LogReader, entry: &Entry) -> Result<()> {
        self.report.entry_count += 1;
        let length_bytes = u64::from(entry.length_bytes);
        if entry.operation == Operation::Write {
            return self.gather(log, entry);
        }
        self.write_gathered()?;
        self.report.discarded_bytes += length_bytes;
        match entry.operation {
            Operation::Discard => self.image.discard(entry.offset, length_bytes),
            _ => self.image.write_zeroes(entry.offset, length_bytes, false),
        }
    }

    /// Reads and checks the data of a write behind what is gathered, when it stands behind it on the disk, too.
    fn gather(&mut self, log: &LogReader, entry: &Entry) -> Result<()> {
        let length = entry.length_bytes as usize;
        let is_next = self.gathered_at + self.gathered.len() as u64 == entry.offset;
        if !is_next || self.gathered.len() + length > GATHER_BYTES {
            self.write_gathered()?;
        }
        if self.gathered.is_empty() {
            self.gathered_at = entry.offset;
        }
        let start = self.gathered.len();
        self.gathered.resize(start + length, 0);
        let read = log.read_data(entry, &mut self.gathered[start..]);
        read.map_err(|error| {
            self.gathered.truncate(start);
            DiskError::from(error)
        })
    }

    fn write_gathered(&mut self) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.image.write_at(self.gathered_at, &self.gathered)?;
        self.report.written_bytes += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileDevice, build_batch};
    use proptest::prelude::*;
    use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogWriter, index_path};
    use std::path::PathBuf;

    const DISK_BYTES: u64 = 64 << 10;

    fn options(id: u8) -> LogOptions {
        LogOptions {
            id: LogId([id; 16]),
            previous_id: LogId::NONE,
            disk_id: [9; 16],
            created_ns: 0,
            first_sequence: 0,
            key: [3; 32],
            keep_space: false,
        }
    }

    fn log(folder: &Path, id: u8, entries: &[(u8, u64, u64, u8)]) -> PathBuf {
        let path = folder.join(format!("{id}.hrl"));
        let index = FsLogFile::create_new(&index_path(&path)).unwrap();
        let mut writer =
            LogWriter::create(FsLogFile::create_new(&path).unwrap(), index, options(id)).unwrap();
        for &(operation, sector, count, fill) in entries {
            let data = vec![fill; count as usize * 512];
            let append = match operation {
                0 => Append::discard(sector * 512, count * 512, 1),
                1 => Append::write_zeroes(sector * 512, count * 512, 1),
                _ => Append::write(sector * 512, &data, 1),
            };
            writer.append(&[append]).unwrap();
        }
        writer.seal(2).unwrap();
        path
    }

    fn image(folder: &Path) -> FileDevice {
        FileDevice::create(&folder.join("image.raw"), DISK_BYTES).unwrap()
    }

    fn bytes(device: &FileDevice) -> Vec<u8> {
        let mut content = vec![0; device.size_bytes() as usize];
        device.read_at(0, &mut content).unwrap();
        content
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn logs_applied_once_or_twice_equal_an_array_of_bytes(
            entries in prop::collection::vec((0u8..6, 0u64..120, 1u64..8, 1u8..255), 1..60)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (first, second) = entries.split_at(entries.len() / 2);
            let paths = [log(folder.path(), 1, first), log(folder.path(), 2, second)];
            let logs: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let mut oracle = vec![0; DISK_BYTES as usize];
            for &(operation, sector, count, fill) in &entries {
                let range = sector as usize * 512..(sector + count) as usize * 512;
                oracle[range].fill(if operation < 2 { 0 } else { fill });
            }
            let image = image(folder.path());
            let stop = AtomicBool::new(false);
            let report = apply_logs(&image, &logs, false, &stop).unwrap();
            prop_assert_eq!(report.entry_count, entries.len() as u64);
            prop_assert_eq!(&bytes(&image), &oracle);
            apply_logs(&image, &logs, true, &stop).unwrap();
            prop_assert_eq!(&bytes(&image), &oracle);
        }
    }

    /// Writes that came at the same time, as those of one batch do, and one that was logged behind a later one.
    const TIMES: [u64; 6] = [5, 7, 7, 7, 6, 9];

    fn timed_log(folder: &Path) -> PathBuf {
        let path = folder.join("timed.hrl");
        let index = FsLogFile::create_new(&index_path(&path)).unwrap();
        let mut writer = LogWriter::create(
            FsLogFile::create_new(&path).unwrap(),
            index,
            LogOptions { first_sequence: 1 << 21, ..options(1) },
        )
        .unwrap();
        for (sector, time_ns) in TIMES.iter().enumerate() {
            writer.append(&[Append::write(sector as u64 * 512, &[1; 512], *time_ns)]).unwrap();
        }
        writer.seal(10).unwrap();
        path
    }

    fn written_sectors(until: Until) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let path = timed_log(folder.path());
        let image = image(folder.path());
        apply_logs_until(&image, &[&path], until, &AtomicBool::new(false)).unwrap();
        bytes(&image).chunks(512).filter(|sector| sector[0] == 1).count()
    }

    #[test]
    fn a_time_ends_before_the_first_later_entry_and_a_sequence_number_behind_its_own() {
        assert_eq!([4, 5, 6, 7, 9].map(|time_ns| written_sectors(Until::Time(time_ns))), [0, 1, 1, 5, 6]);
        let numbers: Vec<_> = (0..6).map(|n| written_sectors(Until::Sequence((1 << 21) + n))).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_sequence_number_means_the_last_log_alone() {
        let folder = tempfile::tempdir().unwrap();
        // Numbers begin anew when a disk is tracked anew.
        let first = timed_log(folder.path());
        let second = log(folder.path(), 2, &[(2, 100, 1, 1), (2, 101, 1, 1)]);
        let image = image(folder.path());
        apply_logs_until(&image, &[&first, &second], Until::Sequence(0), &AtomicBool::new(false)).unwrap();
        let written: Vec<_> = bytes(&image).chunks(512).map(|sector| sector[0]).collect();
        assert_eq!((&written[..7], &written[100..102]), (&[1, 1, 1, 1, 1, 1, 0][..], &[1, 0][..]));
    }

    #[test]
    fn a_damaged_second_log_leaves_the_image_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let good = log(folder.path(), 1, &[(2, 0, 4, 1)]);
        let bad = log(folder.path(), 2, &[(2, 8, 4, 2), (2, 16, 4, 3)]);
        let mut content = std::fs::read(&bad).unwrap();
        content[8192 + 2048 + 77] ^= 1;
        std::fs::write(&bad, content).unwrap();
        let image = image(folder.path());
        let error = apply_logs(&image, &[&good, &bad], false, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.code(), "LOG_CORRUPT");
        assert!(bytes(&image).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_entry_past_the_end_of_the_image_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path(), 1, &[(2, 0, 4, 1), (2, 127, 2, 1)]);
        let image = image(folder.path());
        let error = apply_logs(&image, &[&path], false, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.code(), "LOG_ENTRY_OUT_OF_RANGE");
        assert!(bytes(&image).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_batch_of_a_disk_makes_an_image_equal_to_it_and_keeps_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDevice::create(&folder.path().join("disk.raw"), 8 << 20).unwrap();
        disk.write_at(3 << 20, &[5; 1 << 20]).unwrap();
        let out = folder.path().join("batch.hrl");
        build_batch(&disk, &[(0, 8 << 20)], &out, options(4), u64::MAX, 1).unwrap();
        let image = FileDevice::create(&folder.path().join("image.raw"), 8 << 20).unwrap();
        apply_logs(&image, &[&out], false, &AtomicBool::new(false)).unwrap();
        assert_eq!(bytes(&image), bytes(&disk));
        let allocated = crate::probe(image.path()).unwrap().allocated_bytes;
        assert!(allocated <= 2 << 20, "{allocated} bytes allocated for 1 MiB of data");
    }
}
