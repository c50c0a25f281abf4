//! Reads a sealed log, by its index where there is one, else by its metadata blocks (genuine Hyper-V logs).
//!
//! Entries come in batches of bounded size; data is read on demand and checked before it is handed out. With an
//! index each byte that is returned was covered by a hash; without one, by DataChecksum where the log carries it.
//! The blocks themselves are not looked at when an index leads: that is what [`crate::verify`] does.

use std::path::Path;

use crate::blocks::{BlockPlace, changed, read_block, walk_back};
use crate::data::{read, size_bytes, sums_in_log, sums_of};
use crate::entry::Entry;
use crate::error::{HrlError, Place, Result};
use crate::file::{FsLogFile, LogFile, index_path};
use crate::header::{HEADER_BYTES, LogHeader};
use crate::index::{IndexHeader, RECORD_BYTES, parse_record, record_offset};
use crate::records::Records;
use crate::recover::{check_identity, read_header};
use crate::writer::{LogWriter, SealedLog};

/// Most entries in one batch.
pub const BATCH_ENTRIES_MAX: usize = 4096;

/// How to read a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Refuse entries past this size of the disk (LOG_ENTRY_OUT_OF_RANGE).
    pub disk_size_bytes: Option<u64>,
    /// Read by the metadata blocks even when an index is there.
    pub ignore_index: bool,
}

enum Source<F> {
    Index { file: F, identity: IndexHeader },
    Blocks(Vec<BlockPlace>),
}

/// A sealed log, open for reading.
pub struct LogReader<F: LogFile = FsLogFile> {
    log: F,
    header: LogHeader,
    source: Source<F>,
    size_bytes: u64,
    options: ReadOptions,
}

impl LogReader<FsLogFile> {
    /// Opens a sealed log and the index beside it, if there is one.
    ///
    /// # Errors
    /// LOG_NOT_SEALED (recover it first), LOG_NOT_HRL, LOG_VERSION_UNSUPPORTED, LOG_HEADER_CORRUPT,
    /// LOG_INDEX_MISMATCH, LOG_CORRUPT, LOG_READ_FAILED.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, ReadOptions::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, options: ReadOptions) -> Result<Self> {
        let log = FsLogFile::open_read_only(path)?;
        let index = index_path(path);
        let exists = index.try_exists().map_err(|e| HrlError::read(&index, 0, "stat", e))?;
        let has_index = exists && !options.ignore_index;
        let index = if has_index { Some(FsLogFile::open_read_only(&index)?) } else { None };
        Self::from_files(log, index, options)
    }
}

impl<F: LogFile> LogReader<F> {
    /// Reads a sealed log in open files.
    ///
    /// # Errors
    /// As [`open`](LogReader::open).
    pub fn from_files(log: F, index: Option<F>, options: ReadOptions) -> Result<Self> {
        let header = read_header(&log)?;
        if !header.is_sealed() {
            let reason = "EOLLocation is 0: the log was not closed";
            return Err(HrlError::NotSealed(Place::new(log.path(), 44, reason)));
        }
        let size_bytes = size_bytes(&log)?;
        let source = match index {
            Some(file) => Source::Index { identity: open_index(&log, &header, &file, size_bytes)?, file },
            None => Source::Blocks(walk_back(&log, &header)?),
        };
        Ok(Self { log, header, source, size_bytes, options })
    }

    /// The header of the log.
    pub fn header(&self) -> &LogHeader {
        &self.header
    }

    /// Sequence number of the first entry; 0 without an index.
    pub fn first_sequence(&self) -> u64 {
        match &self.source {
            Source::Index { identity, .. } => identity.first_sequence,
            Source::Blocks(_) => 0,
        }
    }

    /// Whether an index leads.
    pub fn has_index(&self) -> bool {
        matches!(self.source, Source::Index { .. })
    }

    /// Entries in the log.
    pub fn entry_count(&self) -> u64 {
        self.header.entry_count
    }

    /// What [`LogWriter::seal`] said of this log, found out again: reads all entries, but no data.
    ///
    /// # Errors
    /// As [`Entries::next_batch`].
    pub fn describe(&self) -> Result<SealedLog> {
        let (mut data_bytes, mut first, mut last) = (0u64, None, None);
        self.entries()?.for_each(|entry| {
            data_bytes += entry.data_bytes();
            first.get_or_insert(entry.time_ns);
            last = Some(entry.time_ns);
            Ok(())
        })?;
        Ok(SealedLog {
            id: self.header.id,
            previous_id: self.header.previous_id,
            disk_id: self.header.disk_id.unwrap_or_default(),
            first_sequence: self.first_sequence(),
            next_sequence: self.first_sequence().wrapping_add(self.header.entry_count),
            entry_count: self.header.entry_count,
            data_bytes,
            log_size_bytes: self.size_bytes,
            index_size_bytes: if self.has_index() { record_offset(self.header.entry_count) } else { 0 },
            first_time_ns: first.unwrap_or(0),
            last_time_ns: last.unwrap_or(0),
        })
    }

    /// The file of the log.
    pub fn log_file(&self) -> &F {
        &self.log
    }

    /// The entries from the first to the last.
    ///
    /// # Errors
    /// LOG_READ_FAILED.
    pub fn entries(&self) -> Result<Entries<'_, F>> {
        let records = match &self.source {
            Source::Index { file, identity } => Some(Records::open(file, identity.record_seed())?),
            Source::Blocks(_) => None,
        };
        let position = HEADER_BYTES as u64;
        Ok(Entries { reader: self, records, number: 0, block: 0, position })
    }

    /// Entries from number `first` on (0 is the first of the log), at most `count` and [`BATCH_ENTRIES_MAX`]; they replace
    /// the content of `batch`. What lies before them is not read, so it takes an index.
    ///
    /// # Errors
    /// LOG_INDEX_MISSING; LOG_CORRUPT when a record does not check or names what is not in the log; LOG_READ_FAILED.
    pub fn read_entries(&self, first: u64, count: usize, batch: &mut Vec<Entry>) -> Result<()> {
        batch.clear();
        let Source::Index { file, identity } = &self.source else {
            let reason = "entries by their number need the index";
            return Err(HrlError::IndexMissing(Place::new(self.log.path(), 0, reason)));
        };
        let end = self.entry_count().min(first.saturating_add(count.min(BATCH_ENTRIES_MAX) as u64));
        if first >= end {
            return Ok(());
        }
        let mut bytes = vec![0; (end - first) as usize * RECORD_BYTES];
        if !read(file, &mut bytes, record_offset(first))? {
            return Err(changed(file, record_offset(first)));
        }
        for (number, record) in (first..end).zip(bytes.chunks_exact(RECORD_BYTES)) {
            let entry = parse_record(record, identity.record_seed());
            let sequence = identity.first_sequence.wrapping_add(number);
            let Some(entry) = entry.filter(|entry| entry.sequence == sequence && self.is_inside(entry))
            else {
                let reason = format!("record {number} is damaged");
                return Err(HrlError::corrupt(file.path(), record_offset(number), reason));
            };
            batch.push(entry);
        }
        Ok(())
    }

    fn is_inside(&self, entry: &Entry) -> bool {
        let end = entry.log_offset.checked_add(entry.data_bytes());
        entry.log_offset >= HEADER_BYTES as u64 && end.is_some_and(|end| end <= self.header.end_of_log)
    }

    /// Reads the whole data of an entry and checks it.
    ///
    /// # Errors
    /// LOG_INVALID_REQUEST when `buffer` is not as long as the data; LOG_CORRUPT with the offset of the data;
    /// LOG_CHANGED_WHILE_READ; LOG_READ_FAILED.
    pub fn read_data(&self, entry: &Entry, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() as u64 != entry.data_bytes() {
            let reason = format!("buffer of {} bytes for {} bytes of data", buffer.len(), entry.data_bytes());
            return Err(HrlError::InvalidRequest(Place::new(self.log.path(), entry.log_offset, reason)));
        }
        if !read(&self.log, buffer, entry.log_offset)? {
            return Err(changed(&self.log, entry.log_offset));
        }
        if sums_of(entry, buffer).agree_with(entry) { Ok(()) } else { Err(self.blame(entry)) }
    }

    /// Reads a part of an entry's data, **without** checking it: call [`verify_data`](Self::verify_data) first.
    ///
    /// # Errors
    /// LOG_INVALID_REQUEST when the part reaches past the data; LOG_CHANGED_WHILE_READ; LOG_READ_FAILED.
    pub fn read_data_part(&self, entry: &Entry, part_offset: u64, buffer: &mut [u8]) -> Result<()> {
        if part_offset.saturating_add(buffer.len() as u64) > entry.data_bytes() {
            let reason = format!("part {part_offset}+{} of {} bytes", buffer.len(), entry.data_bytes());
            return Err(HrlError::InvalidRequest(Place::new(self.log.path(), entry.log_offset, reason)));
        }
        let offset = entry.log_offset + part_offset;
        if read(&self.log, buffer, offset)? { Ok(()) } else { Err(changed(&self.log, offset)) }
    }

    /// Checks the data of an entry in pieces of at most 1 MiB, read into `buffer`.
    ///
    /// # Errors
    /// As [`read_data`](Self::read_data).
    pub fn verify_data(&self, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        match sums_in_log(&self.log, entry, buffer)? {
            None => Err(changed(&self.log, entry.log_offset)),
            Some(sums) if sums.agree_with(entry) => Ok(()),
            Some(_) => Err(self.blame(entry)),
        }
    }

    /// The data is wrong: damaged, or did somebody write to the file since it was opened?
    fn blame(&self, entry: &Entry) -> HrlError {
        let same_size = self.log.size_bytes().is_ok_and(|size| size == self.size_bytes);
        let same_header = read_header(&self.log).is_ok_and(|header| header == self.header);
        if !same_size || !same_header {
            return changed(&self.log, entry.log_offset);
        }
        let reason = format!(
            "data of entry {} ({:?} of {} bytes at {} of the disk) does not match its checksum",
            entry.sequence, entry.operation, entry.length_bytes, entry.offset
        );
        HrlError::corrupt(self.log.path(), entry.log_offset, reason)
    }
}

fn open_index<F: LogFile>(log: &F, header: &LogHeader, index: &F, log_size: u64) -> Result<IndexHeader> {
    let identity = IndexHeader::read(index)?;
    check_identity(log, header, &identity)?;
    let (found, wanted) = (size_bytes(index)?, header.entry_count.saturating_mul(64).saturating_add(4096));
    if found != wanted {
        let reason = format!("index of {found} bytes, {} entries need {wanted}", header.entry_count);
        return Err(HrlError::IndexMismatch(Place::new(index.path(), found.min(wanted), reason)));
    }
    if header.end_of_log > log_size {
        let reason =
            format!("EOLLocation {} is past the end of the file ({log_size} bytes)", header.end_of_log);
        return Err(HrlError::corrupt(log.path(), 44, reason));
    }
    Ok(identity)
}

/// Walks the entries of a log in order.
pub struct Entries<'r, F: LogFile> {
    reader: &'r LogReader<F>,
    records: Option<Records<'r, F>>,
    number: u64,
    block: usize,
    /// End of the last entry's data: where the next one's should stand.
    position: u64,
}

impl<F: LogFile> Entries<'_, F> {
    /// Replaces the content of `batch` by the next entries, at most [`BATCH_ENTRIES_MAX`] (or one metadata block).
    /// False, and an empty batch, at the end.
    ///
    /// # Errors
    /// LOG_CORRUPT with the file and offset of what is damaged; LOG_ENTRY_OUT_OF_RANGE; LOG_READ_FAILED.
    pub fn next_batch(&mut self, batch: &mut Vec<Entry>) -> Result<bool> {
        batch.clear();
        match &self.reader.source {
            Source::Index { file, identity } => {
                self.batch_by_index(file.path(), identity.first_sequence, batch)?
            }
            Source::Blocks(blocks) => self.batch_by_block(blocks, batch)?,
        }
        if let Some(disk_size) = self.reader.options.disk_size_bytes {
            self.check_range(disk_size, batch)?;
        }
        Ok(!batch.is_empty())
    }

    /// Hands each entry to `visit`, from the present place to the end.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch), and what `visit` returns.
    pub fn for_each(mut self, mut visit: impl FnMut(&Entry) -> Result<()>) -> Result<()> {
        let mut batch = Vec::new();
        while self.next_batch(&mut batch)? {
            batch.iter().try_for_each(&mut visit)?;
        }
        Ok(())
    }

    fn batch_by_index(&mut self, path: &Path, first_sequence: u64, batch: &mut Vec<Entry>) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        while self.number < self.reader.header.entry_count && batch.len() < BATCH_ENTRIES_MAX {
            let entry =
                records.get(self.number)?.filter(|e| e.sequence == first_sequence.wrapping_add(self.number));
            let Some(entry) = entry.filter(|e| self.reader.follows(self.position, e)) else {
                let reason = format!("record {} is damaged or does not follow the one before", self.number);
                return Err(HrlError::corrupt(path, record_offset(self.number), reason));
            };
            self.position = entry.log_offset + entry.data_bytes();
            self.number += 1;
            batch.push(entry);
        }
        Ok(())
    }

    fn batch_by_block(&mut self, blocks: &[BlockPlace], batch: &mut Vec<Entry>) -> Result<()> {
        while batch.is_empty() && self.block < blocks.len() {
            let block = blocks[self.block];
            read_block(&self.reader.log, block, self.position, self.number, batch)?;
            self.position = block.position + u64::from(self.reader.header.metadata_size_bytes);
            self.number += batch.len() as u64;
            self.block += 1;
        }
        Ok(())
    }

    fn check_range(&self, disk_size: u64, batch: &[Entry]) -> Result<()> {
        let Some(entry) = batch.iter().find(|entry| entry.end() > disk_size) else { return Ok(()) };
        let reason = format!(
            "entry {} covers {}+{} of a disk of {disk_size} bytes",
            entry.sequence, entry.offset, entry.length_bytes
        );
        Err(HrlError::EntryOutOfRange(Place::new(self.reader.log.path(), entry.log_offset, reason)))
    }
}

impl<F: LogFile> LogReader<F> {
    /// Whether an entry of the index stands where one can: right behind the entry before, or with one block between.
    fn follows(&self, position: u64, entry: &Entry) -> bool {
        let block = u64::from(self.header.metadata_size_bytes);
        let behind = entry.log_offset.checked_sub(position);
        let end = entry.log_offset.checked_add(entry.data_bytes());
        (behind == Some(0) && position > HEADER_BYTES as u64 || behind == Some(block))
            && end.is_some_and(|end| end <= self.header.end_of_log - block)
    }
}

impl<F: LogFile> LogWriter<F> {
    /// Entries of the open log from number `first` (0 is the first of the log), at most [`BATCH_ENTRIES_MAX`]; they
    /// replace the content of `batch`. False, and an empty batch, at the end.
    ///
    /// # Errors
    /// LOG_CORRUPT when a record does not check; LOG_READ_FAILED.
    pub fn read_entries(&self, first: u64, batch: &mut Vec<Entry>) -> Result<bool> {
        batch.clear();
        let mut records = Records::open(&self.index, self.identity.record_seed())?;
        let end = self.tail.entry_count.min(first.saturating_add(BATCH_ENTRIES_MAX as u64));
        for number in first..end {
            let Some(entry) = records.get(number)? else {
                let reason = format!("record {number} is damaged");
                return Err(HrlError::corrupt(self.index.path(), record_offset(number), reason));
            };
            batch.push(entry);
        }
        Ok(!batch.is_empty())
    }

    /// Reads the whole data of an entry of the open log and checks it.
    ///
    /// # Errors
    /// As [`LogReader::read_data`].
    pub fn read_data(&self, entry: &Entry, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() as u64 != entry.data_bytes() {
            let reason = format!("buffer of {} bytes for {} bytes of data", buffer.len(), entry.data_bytes());
            return Err(HrlError::InvalidRequest(Place::new(self.log.path(), entry.log_offset, reason)));
        }
        if !read(&self.log, buffer, entry.log_offset)? {
            return Err(changed(&self.log, entry.log_offset));
        }
        if sums_of(entry, buffer).agree_with(entry) {
            return Ok(());
        }
        let reason = format!("data of entry {} does not match its hash", entry.sequence);
        Err(HrlError::corrupt(self.log.path(), entry.log_offset, reason))
    }
}
