//! Checks a whole log: every block, every record, every byte of data, and that log and index say the same.
//!
//! One walk serves both callers: [`verify`] stops at the first damage and returns it as an error, [`inspect`] goes
//! on, as far as that makes sense, and lists what it finds. Neither changes a file.

use std::path::{Path, PathBuf};

use crate::blocks::{BlockPlace, read_block, walk_back};
use crate::data::{size_bytes, sums_in_log};
use crate::entry::{Entry, Operation};
use crate::error::{HrlError, Place, Result};
use crate::file::{FsLogFile, LogFile, index_path};
use crate::header::{HEADER_BYTES, LogHeader};
use crate::index::{INDEX_HEADER_BYTES, IndexHeader, RECORD_BYTES, record_offset};
use crate::records::Records;
use crate::recover::{RecoverMode, Recovery, check_identity, read_header};
use crate::scan::block_at;
use crate::seal::{SealKey, fold};
use crate::time::seconds_since_2000;

/// Most damages that [`inspect`] lists.
pub const DAMAGES_MAX: usize = 256;

/// Whether a damage is what a crash leaves behind, or an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// The log was not closed, or its last entry is incomplete: recovery settles it.
    Torn,
    /// Bytes that were good once are wrong.
    Corrupt,
}

/// One thing that is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Torn or corrupt.
    pub kind: DamageKind,
    /// The code of the error that reading it gives.
    pub code: &'static str,
    /// File, offset and reason.
    pub place: Place,
}

impl Damage {
    fn of(error: &HrlError) -> Self {
        let torn = matches!(error, HrlError::TornTail(_) | HrlError::NotSealed(_));
        let kind = if torn { DamageKind::Torn } else { DamageKind::Corrupt };
        Self { kind, code: error.code(), place: error.place().clone() }
    }
}

/// Counts over the entries of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStatistics {
    /// Entries.
    pub entry_count: u64,
    /// Of these, writes.
    pub write_count: u64,
    /// Bytes of data of all writes.
    pub write_bytes: u64,
    /// Bytes of zeroed ranges.
    pub zero_bytes: u64,
    /// Bytes of discarded ranges.
    pub discard_bytes: u64,
    /// Sequence number of the first entry (by the index).
    pub first_sequence: Option<u64>,
    /// Time of the earliest entry, Unix nanoseconds.
    pub first_time_ns: Option<u64>,
    /// Time of the latest entry.
    pub last_time_ns: Option<u64>,
    /// Highest end of an entry on the disk.
    pub disk_end_offset: u64,
}

impl LogStatistics {
    fn count(&mut self, entry: &Entry) {
        self.entry_count += 1;
        let bytes = match entry.operation {
            Operation::Write => {
                self.write_count += 1;
                &mut self.write_bytes
            }
            Operation::WriteZeroes => &mut self.zero_bytes,
            Operation::Discard => &mut self.discard_bytes,
        };
        *bytes = bytes.saturating_add(u64::from(entry.length_bytes));
        self.first_time_ns = Some(self.first_time_ns.map_or(entry.time_ns, |time| time.min(entry.time_ns)));
        self.last_time_ns = Some(self.last_time_ns.map_or(entry.time_ns, |time| time.max(entry.time_ns)));
        self.disk_end_offset = self.disk_end_offset.max(entry.end());
    }
}

/// What [`inspect`] found.
#[derive(Debug, Clone)]
pub struct Report {
    /// The log.
    pub path: PathBuf,
    /// Its size.
    pub log_size_bytes: u64,
    /// Its header, when that can be read.
    pub header: Option<LogHeader>,
    /// Whether it has an index.
    pub has_index: bool,
    /// Over all entries that could be read.
    pub statistics: LogStatistics,
    /// What is wrong; empty for a good sealed log. At most [`DAMAGES_MAX`].
    pub damage: Vec<Damage>,
}

/// Checks a sealed log and its index completely.
///
/// Without an index only the byte sums of [MS-HRL] protect a log, and its data only where DataChecksum is set.
///
/// # Errors
/// The first damage found: LOG_CORRUPT, LOG_INDEX_MISMATCH, LOG_HEADER_CORRUPT, LOG_NOT_SEALED and so on, each with
/// file, offset and reason; LOG_ENTRY_OUT_OF_RANGE when `disk_size_bytes` is given.
pub fn verify(path: &Path, disk_size_bytes: Option<u64>) -> Result<LogStatistics> {
    let (log, index) = open(path)?;
    verify_files(&log, index.as_ref(), disk_size_bytes)
}

/// [`verify`] of open files.
///
/// # Errors
/// As [`verify`].
pub fn verify_files<F: LogFile>(
    log: &F,
    index: Option<&F>,
    disk_size_bytes: Option<u64>,
) -> Result<LogStatistics> {
    let header = read_header(log)?;
    let mut walk = Walk { disk_size_bytes, ..Walk::new(log, index, Err) };
    if !header.is_sealed() {
        let reason = "EOLLocation is 0: the log was not closed";
        return Err(HrlError::NotSealed(Place::new(log.path(), 44, reason)));
    }
    walk.sealed(&header)?;
    Ok(walk.statistics)
}

/// Says what a log is and what is wrong with it; also of open and of damaged logs.
///
/// # Errors
/// LOG_READ_FAILED when the file cannot be opened or read at all. Damage is not an error here.
pub fn inspect(path: &Path) -> Result<Report> {
    let (log, index) = open(path)?;
    inspect_files(&log, index.as_ref())
}

/// [`inspect`] of open files.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_files<F: LogFile>(log: &F, index: Option<&F>) -> Result<Report> {
    let mut damage = Vec::new();
    let header = read_header(log);
    let mut walk = Walk::new(log, index, |error| {
        if damage.len() < DAMAGES_MAX {
            damage.push(Damage::of(&error));
        }
        Ok(())
    });
    let result = match &header {
        Err(_) => Ok(()),
        Ok(header) if header.is_sealed() => walk.sealed(header),
        Ok(header) => walk.open(header),
    };
    let statistics = walk.statistics;
    damage.extend(result.as_ref().err().map(Damage::of));
    damage.extend(header.as_ref().err().map(Damage::of));
    let (path, log_size_bytes) = (log.path().to_path_buf(), size_bytes(log)?);
    Ok(Report { path, log_size_bytes, header: header.ok(), has_index: index.is_some(), statistics, damage })
}

pub(crate) fn open(path: &Path) -> Result<(FsLogFile, Option<FsLogFile>)> {
    let log = FsLogFile::open_read_only(path)?;
    let index = index_path(path);
    let exists = index != path && index.try_exists().map_err(|e| HrlError::read(&index, 0, "stat", e))?;
    Ok((log, if exists { Some(FsLogFile::open_read_only(&index)?) } else { None }))
}

/// `report` decides what a damage that can be stepped over means: an error at once, or an item of a list.
struct Walk<'f, F: LogFile, R: FnMut(HrlError) -> Result<()>> {
    log: &'f F,
    index: Option<&'f F>,
    disk_size_bytes: Option<u64>,
    report: R,
    statistics: LogStatistics,
    buffer: Vec<u8>,
}

impl<'f, F: LogFile, R: FnMut(HrlError) -> Result<()>> Walk<'f, F, R> {
    fn new(log: &'f F, index: Option<&'f F>, report: R) -> Self {
        Self {
            log,
            index,
            disk_size_bytes: None,
            report,
            statistics: LogStatistics::default(),
            buffer: Vec::new(),
        }
    }

    fn sealed(&mut self, header: &LogHeader) -> Result<()> {
        let index = self.index;
        match index {
            None => self.blocks(header, None),
            Some(index) => {
                let identity = self.index_header(header, index)?;
                let records = Records::open(index, identity.record_seed())?;
                self.statistics.first_sequence = Some(identity.first_sequence);
                self.blocks(header, Some(Lockstep { identity, records, number: 0 }))
            }
        }
    }

    fn index_header(&mut self, header: &LogHeader, index: &F) -> Result<IndexHeader> {
        let identity = IndexHeader::read(index)?;
        check_identity(self.log, header, &identity)?;
        let found = size_bytes(index)?;
        let records = header.entry_count.saturating_mul(RECORD_BYTES as u64);
        if found != records.saturating_add(INDEX_HEADER_BYTES as u64) {
            let reason = format!("index of {found} bytes does not fit {} entries", header.entry_count);
            return Err(HrlError::IndexMismatch(Place::new(index.path(), found, reason)));
        }
        Ok(identity)
    }

    fn blocks(&mut self, header: &LogHeader, mut lockstep: Option<Lockstep<'f, F>>) -> Result<()> {
        let mut position = HEADER_BYTES as u64;
        let mut entries = Vec::new();
        for block in walk_back(self.log, header)? {
            entries.clear();
            read_block(self.log, block, position, self.statistics.entry_count, &mut entries)?;
            if let Some(lockstep) = &mut lockstep {
                self.compare(lockstep, &mut entries)?;
                self.seal(lockstep, block, &entries)?;
            }
            entries.iter().try_for_each(|entry| self.entry(entry))?;
            position = block.position + u64::from(header.metadata_size_bytes);
        }
        Ok(())
    }

    /// Replaces each entry by what its record says, after checking that both agree.
    fn compare(&mut self, lockstep: &mut Lockstep<'f, F>, entries: &mut [Entry]) -> Result<()> {
        let Some(index) = self.index else { return Ok(()) };
        for entry in entries {
            let number = lockstep.number;
            lockstep.number += 1;
            match lockstep.records.get(number)? {
                Some(record) if lockstep.same(&record, entry, number) => *entry = record,
                Some(_) => {
                    let reason = format!("record {number} and the metadata of the log disagree");
                    let place = Place::new(index.path(), record_offset(number), reason);
                    (self.report)(HrlError::IndexMismatch(place))?;
                }
                None => {
                    let reason = format!("record {number} is damaged");
                    (self.report)(HrlError::corrupt(index.path(), record_offset(number), reason))?;
                }
            }
        }
        Ok(())
    }

    fn seal(&mut self, lockstep: &Lockstep<'f, F>, block: BlockPlace, entries: &[Entry]) -> Result<()> {
        let key = SealKey { id: lockstep.identity.id, key: lockstep.identity.key };
        let sealed = block_at(self.log, &key, block.position, u64::MAX)?;
        let hashes = entries.iter().filter_map(|entry| entry.data_hash);
        if sealed.is_some_and(|sealed| sealed.seal.fold == fold(hashes)) {
            return Ok(());
        }
        let reason = "the seal of the metadata block is wrong";
        (self.report)(HrlError::corrupt(self.log.path(), block.position, reason))
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.statistics.count(entry);
        if let Some(size) = self.disk_size_bytes.filter(|size| entry.end() > *size) {
            let reason =
                format!("entry covers {}+{} of a disk of {size} bytes", entry.offset, entry.length_bytes);
            (self.report)(HrlError::EntryOutOfRange(Place::new(self.log.path(), entry.log_offset, reason)))?;
        }
        let sums = sums_in_log(self.log, entry, &mut self.buffer)?;
        if sums.is_some_and(|sums| sums.agree_with(entry)) {
            return Ok(());
        }
        let reason = format!(
            "data of entry {} ({} bytes for {} of the disk) does not match its checksum",
            entry.sequence, entry.length_bytes, entry.offset
        );
        (self.report)(HrlError::corrupt(self.log.path(), entry.log_offset, reason))
    }

    /// An open log: what recovery after a power loss would keep, without touching anything.
    fn open(&mut self, _header: &LogHeader) -> Result<()> {
        let Some(index) = self.index else {
            let reason = "the log was not closed and has no index: nothing in it can be found";
            return Err(HrlError::NotSealed(Place::new(self.log.path(), 44, reason)));
        };
        let mut recovery = Recovery::start(self.log, index, RecoverMode::PowerLoss, false)?;
        self.statistics.first_sequence = Some(recovery.identity.first_sequence);
        let statistics = &mut self.statistics;
        let torn = recovery.run_with(&mut |entry| statistics.count(entry))?;
        let reason = format!("the log was not closed; {} entries are whole", recovery.tail.entry_count);
        (self.report)(HrlError::NotSealed(Place::new(self.log.path(), 44, reason)))?;
        match torn {
            None => Ok(()),
            Some(torn) => {
                (self.report)(HrlError::TornTail(Place::new(self.log.path(), torn.offset, torn.reason)))
            }
        }
    }
}

/// The index, read along with the blocks.
struct Lockstep<'f, F: LogFile> {
    identity: IndexHeader,
    records: Records<'f, F>,
    number: u64,
}

impl<F: LogFile> Lockstep<'_, F> {
    fn same(&self, record: &Entry, entry: &Entry, number: u64) -> bool {
        let sequence = self.identity.first_sequence.wrapping_add(number);
        let seconds = seconds_since_2000(record.time_ns) == seconds_since_2000(entry.time_ns);
        let comparable = Entry { sequence, time_ns: record.time_ns, data_hash: record.data_hash, ..*entry };
        seconds && comparable == *record
    }
}
