//! Coalescing: of overlapping writes in a run of logs only the last bytes go into one new log.
//!
//! Planning reads the indexes alone and keeps an interval map from disk ranges to the entry that wrote them last. An
//! entry that arrives covers what lies below it: whole segments vanish, partly covered ones are cut. Writing the plan
//! goes through it by disk offset, merges neighbours, and takes the data from the inputs.
//!
//! **Memory**: n entries give at most 2n segments (each entry adds itself and at most one remainder of a segment cut
//! in two). An entry costs 72 bytes here and a segment about 40 with its share of the map, so 1 Mi entries, the limit,
//! stay below 72 MiB + 80 MiB at the very worst; where writes replace each other it is half of that.
//!
//! The order of the writes is lost, and so is every state between the first and the last input: never coalesce over a
//! cut that must stay reachable.

use std::collections::BTreeMap;
use std::path::Path;

use crate::entry::{Append, Entry, Operation};
use crate::error::{HrlError, Place, Result};
use crate::export::parent;
use crate::file::{FsLogFile, LogFile, index_path, sync_folder};
use crate::header::LogHeader;
use crate::index::record_offset;
use crate::metadata::{BLOCK_BYTES, ENTRIES_PER_BLOCK_MAX};
use crate::reader::LogReader;
use crate::writer::{DATA_START, LogOptions, LogWriter, SealedLog};

/// Most entries of all inputs together (LOG_LIMIT_EXCEEDED beyond): see the arithmetic at the head of the file.
pub const COALESCE_ENTRIES_MAX: usize = 1 << 20;
/// Neighbouring writes are merged up to this length.
const MERGE_BYTES_MAX: u64 = 1 << 20;
/// Data gathered before it is written.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_ENTRIES: usize = 512;

/// What coalescing did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coalesced {
    /// Logs and indexes of the input.
    pub input_bytes: u64,
    /// Log and index of the output.
    pub output_bytes: u64,
    /// Entries of the input.
    pub input_entries: u64,
    /// The output.
    pub sealed: SealedLog,
}

/// A segment of the disk up to `end`, last written by entry `source` of the plan.
#[derive(Debug, Clone, Copy)]
struct Segment {
    end: u64,
    source: u32,
}

#[derive(Debug, Clone, Copy)]
struct Source {
    log: u32,
    entry: Entry,
    verified: bool,
}

/// A coalesced log that was planned but not written: nothing but the indexes was read.
#[derive(Default)]
pub struct CoalescePlan {
    logs: Vec<LogReader>,
    sources: Vec<Source>,
    segments: BTreeMap<u64, Segment>,
    input_bytes: u64,
}

/// Plans to coalesce sealed logs, given from the oldest to the newest.
///
/// # Errors
/// Those of [`LogReader`]; LOG_LIMIT_EXCEEDED with more than [`COALESCE_ENTRIES_MAX`] entries;
/// LOG_INVALID_REQUEST without any log.
pub fn coalesce_plan(inputs: &[&Path]) -> Result<CoalescePlan> {
    if inputs.is_empty() {
        return Err(HrlError::InvalidRequest(Place::new(Path::new(""), 0, "no logs to coalesce")));
    }
    let mut plan = CoalescePlan::default();
    for path in inputs {
        plan.add(LogReader::open(path)?)?;
    }
    Ok(plan)
}

/// Plans and writes in one call; see [`coalesce_plan`] and [`CoalescePlan::write`].
///
/// # Errors
/// As both.
pub fn coalesce(inputs: &[&Path], output: &Path, options: LogOptions, time_ns: u64) -> Result<Coalesced> {
    coalesce_plan(inputs)?.write(output, options, time_ns)
}

impl CoalescePlan {
    fn add(&mut self, reader: LogReader) -> Result<()> {
        let log = self.logs.len() as u32;
        let entry_count = reader.entry_count();
        if (self.sources.len() as u64).saturating_add(entry_count) > COALESCE_ENTRIES_MAX as u64 {
            let reason = format!("more than {COALESCE_ENTRIES_MAX} entries to coalesce");
            return Err(HrlError::LimitExceeded(Place::new(reader.log_file().path(), 0, reason)));
        }
        self.input_bytes += reader.header().end_of_log.saturating_add(record_offset(entry_count));
        reader.entries()?.for_each(|entry| {
            self.sources.push(Source { log, entry: *entry, verified: false });
            cover(&mut self.segments, entry.offset, entry.end(), (self.sources.len() - 1) as u32);
            Ok(())
        })?;
        self.logs.push(reader);
        Ok(())
    }

    /// Bytes of the input logs with their indexes.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Bytes the output will have, at most: merging of neighbours is not counted in.
    pub fn output_bytes_max(&self) -> u64 {
        let live = |(start, segment): (&u64, &Segment)| match self.entry(segment).operation {
            Operation::Write => segment.end - start,
            _ => 0,
        };
        let data_bytes = self.segments.iter().map(live).sum();
        output_size(self.segments.len() as u64, data_bytes)
    }

    /// Entries of the input logs.
    pub fn input_entries(&self) -> u64 {
        self.sources.len() as u64
    }

    /// Share of the input that the output does not need, in percent, rounded down.
    pub fn saved_percent(&self) -> u32 {
        let saved = self.input_bytes.saturating_sub(self.output_bytes_max());
        (u128::from(saved) * 100 / u128::from(self.input_bytes.max(1))) as u32
    }

    /// The first and the last log of the input, whose places in the chain the output can take.
    pub fn chain(&self) -> Option<(&LogHeader, &LogHeader)> {
        Some((self.logs.first()?.header(), self.logs.last()?.header()))
    }

    fn entry(&self, segment: &Segment) -> &Entry {
        &self.sources[segment.source as usize].entry
    }

    /// Writes the plan as a new sealed log with its index; both files must not exist. Durable when it returns, names
    /// included. The data of each input entry that lives on is checked before any of it is taken.
    ///
    /// Give it the UniqueId of the last input and the PreviousUniqueId of the first, and it stands in the chain for
    /// all of them.
    ///
    /// # Errors
    /// LOG_CORRUPT and LOG_CHANGED_WHILE_READ from the inputs; LOG_UNALIGNED for ranges of genuine logs that no log
    /// of ours can hold; LOG_WRITE_FAILED. The output is removed on an error.
    pub fn write(mut self, output: &Path, options: LogOptions, time_ns: u64) -> Result<Coalesced> {
        let (input_bytes, input_entries) = (self.input_bytes, self.input_entries());
        let index = index_path(output);
        let files = create_pair(output, &index)?;
        let sealed = LogWriter::create(files.0, files.1, options).and_then(|mut writer| {
            self.copy(&mut writer)?;
            writer.seal(time_ns)
        });
        match sealed.and_then(|sealed| sync_folder(parent(output)).map(|()| sealed)) {
            Ok(sealed) => {
                let output_bytes = sealed.log_size_bytes + sealed.index_size_bytes;
                Ok(Coalesced { input_bytes, output_bytes, input_entries, sealed })
            }
            Err(e) => {
                // The error is the one to report; what cannot be removed now is an open log that nothing refers to.
                let _ = (std::fs::remove_file(output), std::fs::remove_file(index));
                Err(e)
            }
        }
    }

    fn copy(&mut self, writer: &mut LogWriter<FsLogFile>) -> Result<()> {
        let segments = std::mem::take(&mut self.segments);
        let mut batch = Batch::default();
        let mut buffer = Vec::new();
        for (start, segment) in segments {
            self.verify(segment.source, &mut buffer)?;
            let source = &self.sources[segment.source as usize];
            let log = &self.logs[source.log as usize];
            for (offset, length_bytes) in pieces(start, segment.end) {
                batch.add(log, &source.entry, offset, length_bytes)?;
                if batch.is_full() {
                    batch.flush(writer)?;
                }
            }
        }
        batch.flush(writer)
    }

    fn verify(&mut self, source: u32, buffer: &mut Vec<u8>) -> Result<()> {
        let source = &mut self.sources[source as usize];
        if !source.verified {
            self.logs[source.log as usize].verify_data(&source.entry, buffer)?;
            source.verified = true;
        }
        Ok(())
    }
}

fn create_pair(log: &Path, index: &Path) -> Result<(FsLogFile, FsLogFile)> {
    let log_file = FsLogFile::create_new(log)?;
    match FsLogFile::create_new(index) {
        Ok(index_file) => Ok((log_file, index_file)),
        Err(e) => {
            let _ = std::fs::remove_file(log); // We made it just now; the error above is the one to report.
            Err(e)
        }
    }
}

/// Sizes of log and index with so many entries and bytes of data, as our writer lays them out without checkpoints.
fn output_size(entry_count: u64, data_bytes: u64) -> u64 {
    let blocks = entry_count.div_ceil(ENTRIES_PER_BLOCK_MAX as u64);
    DATA_START + data_bytes + blocks * BLOCK_BYTES as u64 + record_offset(entry_count)
}

/// Lets `source` be the last writer of `start..end`.
fn cover(segments: &mut BTreeMap<u64, Segment>, start: u64, end: u64, source: u32) {
    if start >= end {
        return;
    }
    if let Some((&left, &below)) = segments.range(..start).next_back()
        && below.end > start
    {
        segments.insert(left, Segment { end: start, ..below });
        if below.end > end {
            segments.insert(end, below);
        }
    }
    while let Some((&inside, &below)) = segments.range(start..end).next() {
        segments.remove(&inside);
        if below.end > end {
            segments.insert(end, below);
        }
    }
    segments.insert(start, Segment { end, source });
}

/// `start..end` in pieces that one batch can hold; a zero range is put together again by the merging of neighbours.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = (end - start).div_ceil(MERGE_BYTES_MAX);
    (0..count).map(move |n| start + n * MERGE_BYTES_MAX).map(move |at| (at, MERGE_BYTES_MAX.min(end - at)))
}

/// Ranges of the output, gathered until they are worth a write.
#[derive(Default)]
struct Batch {
    ranges: Vec<Range>,
    data: Vec<u8>,
}

struct Range {
    operation: Operation,
    offset: u64,
    length_bytes: u64,
    time_ns: u64,
}

impl Batch {
    /// Adds a part of an entry, merged with the range before it where they touch.
    fn add(&mut self, log: &LogReader, entry: &Entry, offset: u64, length_bytes: u64) -> Result<()> {
        if entry.operation == Operation::Write {
            let filled = self.data.len();
            self.data.resize(filled + length_bytes as usize, 0);
            log.read_data_part(entry, offset - entry.offset, &mut self.data[filled..])?;
        }
        self.merge(Range { operation: entry.operation, offset, length_bytes, time_ns: entry.time_ns });
        Ok(())
    }

    fn merge(&mut self, range: Range) {
        match self.ranges.last_mut() {
            Some(last)
                if last.operation == range.operation
                    && last.offset + last.length_bytes == range.offset
                    && (range.operation != Operation::Write
                        || last.length_bytes + range.length_bytes <= MERGE_BYTES_MAX) =>
            {
                last.length_bytes += range.length_bytes;
                last.time_ns = last.time_ns.max(range.time_ns);
            }
            _ => self.ranges.push(range),
        }
    }

    fn is_full(&self) -> bool {
        self.data.len() >= BATCH_BYTES || self.ranges.len() >= BATCH_ENTRIES
    }

    fn flush(&mut self, writer: &mut LogWriter<FsLogFile>) -> Result<()> {
        let mut rest = self.data.as_slice();
        let mut appends = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let bytes = if range.operation == Operation::Write { range.length_bytes as usize } else { 0 };
            let (data, behind) = rest.split_at(bytes);
            rest = behind;
            let &Range { operation, offset, length_bytes, time_ns } = range;
            appends.push(Append { operation, offset, length_bytes, data, time_ns });
        }
        writer.append(&appends)?;
        self.ranges.clear();
        self.data.clear();
        Ok(())
    }
}
