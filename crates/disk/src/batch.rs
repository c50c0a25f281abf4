//! A batch: a log built from what stands in ranges of a disk, for initial replication and resynchronization.
//!
//! The disk may be written to meanwhile. What is read then is older or newer than the batch says, and the log that the
//! tracked disk writes at the same time corrects it: it is applied on top. Holes and runs of zeros become discards, so
//! they cost nothing on the way and stay holes on the replica.

use std::path::Path;

use secondsite_hrl::{Append, FsLogFile, LogOptions, LogWriter, SealedLog, index_path, sync_folder};

use crate::device::{BlockDevice, ExtentKind, check_range};
use crate::error::Result;

/// Bytes read, looked at and appended at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Zeros shorter than this inside data are not worth an entry of their own.
const ZERO_RUN_BYTES: usize = 64 << 10;

/// Writes a sealed log with the present content of `ranges` (offset, length; sorted) to `out`, which is replaced. Ends
/// after `data_bytes_max` bytes of data.
///
/// Returns the log and where the next batch goes on: the end of the last range when all of them are in.
///
/// # Errors
/// DISK_OUT_OF_RANGE, DISK_READ_FAILED, LOG_WRITE_FAILED.
pub fn build_batch(
    device: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    out: &Path,
    options: LogOptions,
    data_bytes_max: u64,
    now_ns: u64,
) -> Result<(SealedLog, u64)> {
    for &(offset, length_bytes) in ranges {
        check_range(device, offset, length_bytes)?;
    }
    let built = write_batch(device, ranges, out, options, data_bytes_max, now_ns);
    if built.is_err() {
        remove(out); // A disk that is full gets its room back.
    }
    built
}

fn write_batch(
    device: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    out: &Path,
    options: LogOptions,
    data_bytes_max: u64,
    now_ns: u64,
) -> Result<(SealedLog, u64)> {
    let mut batch = Batch::new(create(out, options)?, now_ns);
    let mut next = ranges.first().map_or(0, |range| range.0);
    for &(offset, length_bytes) in ranges {
        next = batch.add_range(device, offset, offset + length_bytes, data_bytes_max)?;
        if batch.writer.data_bytes() >= data_bytes_max {
            break;
        }
    }
    let sealed = batch.writer.seal(now_ns)?;
    sync_folder(out.parent().unwrap_or(Path::new(".")))?;
    Ok((sealed, next))
}

pub(crate) fn create(out: &Path, options: LogOptions) -> Result<LogWriter<FsLogFile>> {
    let index = index_path(out);
    remove(out); // Left by a run that died.
    Ok(LogWriter::create(FsLogFile::create_new(out)?, FsLogFile::create_new(&index)?, options)?)
}

/// Removes a batch; creating it anew reports what matters of a failure.
pub(crate) fn remove(out: &Path) {
    for path in [out, index_path(out).as_path()] {
        let _ = std::fs::remove_file(path);
    }
}

pub(crate) struct Batch {
    pub(crate) writer: LogWriter<FsLogFile>,
    buffer: Vec<u8>,
    now_ns: u64,
}

impl Batch {
    pub(crate) fn new(writer: LogWriter<FsLogFile>, now_ns: u64) -> Self {
        Self { writer, buffer: vec![0; PIECE_BYTES as usize], now_ns }
    }

    /// Adds a range until it or the batch is full; says where it ended.
    pub(crate) fn add_range(
        &mut self,
        device: &dyn BlockDevice,
        from: u64,
        end: u64,
        data_bytes_max: u64,
    ) -> Result<u64> {
        let mut at = from;
        while at < end && self.writer.data_bytes() < data_bytes_max {
            let extent = device.extent_at(at, end)?;
            match extent.kind {
                ExtentKind::Hole => {
                    self.writer.append(&[Append::discard(at, extent.length_bytes, self.now_ns)])?;
                    at = extent.end();
                }
                ExtentKind::Data => at = self.add_piece(device, at, extent.end())?,
            }
        }
        Ok(at)
    }

    /// Adds one piece of data, its runs of zeros as discards.
    fn add_piece(&mut self, device: &dyn BlockDevice, at: u64, end: u64) -> Result<u64> {
        let length = PIECE_BYTES.min(end - at) as usize;
        device.read_at(at, &mut self.buffer[..length])?;
        let now_ns = self.now_ns;
        let runs = zero_runs(&self.buffer[..length]);
        let entries: Vec<Append<'_>> = runs
            .iter()
            .map(|run| {
                let offset = at + run.start as u64;
                match run.is_zero {
                    true => Append::discard(offset, (run.end - run.start) as u64, now_ns),
                    false => Append::write(offset, &self.buffer[run.start..run.end], now_ns),
                }
            })
            .collect();
        self.writer.append(&entries)?;
        Ok(at + length as u64)
    }
}

struct Run {
    start: usize,
    end: usize,
    is_zero: bool,
}

/// Parts a piece at its long runs of zeros, which begin and end at multiples of 64 KiB from the start of the piece.
fn zero_runs(piece: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, chunk) in piece.chunks(ZERO_RUN_BYTES).enumerate() {
        let start = index * ZERO_RUN_BYTES;
        let (end, is_zero) = (start + chunk.len(), is_zero(chunk));
        match runs.last_mut() {
            Some(last) if last.is_zero == is_zero => last.end = end,
            _ => runs.push(Run { start, end, is_zero }),
        }
    }
    runs
}

/// Whether all bytes are zero; the first bytes of most data say no.
fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|byte| *byte == 0)
        && rest.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileDevice;
    use secondsite_hrl::{LogId, LogReader, Operation};

    fn options() -> LogOptions {
        LogOptions {
            id: LogId([7; 16]),
            previous_id: LogId::NONE,
            disk_id: [9; 16],
            created_ns: 0,
            first_sequence: 0,
            key: [3; 32],
            keep_space: false,
        }
    }

    #[test]
    fn holes_and_zeros_become_discards_and_a_full_batch_says_where_to_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDevice::create(&folder.path().join("d.raw"), 8 << 20).unwrap();
        disk.write_at(0, &[1; 1 << 20]).unwrap();
        disk.write_at(1 << 20, &[0; 1 << 20]).unwrap();
        disk.write_at(6 << 20, &[2; 2 << 20]).unwrap();
        let out = folder.path().join("b.hrl");
        let (sealed, next) = build_batch(&disk, &[(0, 8 << 20)], &out, options(), 2 << 20, 5).unwrap();
        assert_eq!((sealed.data_bytes, next), (2 << 20, 7 << 20));
        let mut covered = Vec::new();
        let visit = |entry: &secondsite_hrl::Entry| {
            covered.push((entry.operation, entry.offset, u64::from(entry.length_bytes)));
            Ok(())
        };
        LogReader::open(&out).unwrap().entries().unwrap().for_each(visit).unwrap();
        assert_eq!(
            covered,
            [
                (Operation::Write, 0, 1 << 20),
                (Operation::Discard, 1 << 20, 1 << 20),
                (Operation::Discard, 2 << 20, 4 << 20),
                (Operation::Write, 6 << 20, 1 << 20),
            ]
        );
    }

    #[test]
    fn a_range_outside_of_the_disk_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDevice::create(&folder.path().join("d.raw"), 4096).unwrap();
        let out = folder.path().join("b.hrl");
        let error = build_batch(&disk, &[(0, 8192)], &out, options(), 1 << 20, 5).unwrap_err();
        assert_eq!(error.code(), "DISK_OUT_OF_RANGE");
        assert!(!out.exists());
    }
}
