//! Writes a log: entries in, a metadata block whenever one is full or asked for, a sealed file at the end.
//!
//! Order within a batch: log first, index second. So a record in the index proves, as long as the page cache lives,
//! that the data it speaks of is in the log; recovery after the death of a process rests on that.
//!
//! A failed write poisons the writer: it stays at its last good entry, takes no more, and can still be sealed.
//! It does no locking (its owner's order lock does) and no retries.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::data::size_bytes;
use crate::entry::Append;
use crate::error::{HrlError, Place, Result};
use crate::file::LogFile;
use crate::header::{HEADER_BYTES, LogHeader, METADATA_BYTES};
use crate::id::LogId;
use crate::index::{INDEX_HEADER_BYTES, IndexHeader, record_offset};
use crate::metadata::BLOCK_BYTES;
use crate::seal::SealKey;
use crate::stage::{Scratch, Stage, Tail, make_block};
use crate::time::seconds_since_2000;

/// Where the first metadata block stands.
pub(crate) const FIRST_BLOCK: u64 = HEADER_BYTES as u64;
/// Where the first data stands.
pub(crate) const DATA_START: u64 = FIRST_BLOCK + BLOCK_BYTES as u64;

/// Zeros written ahead of a log at a flush.
const ROOM_BYTES: usize = 512 << 10;
static ZEROS: [u8; ROOM_BYTES] = [0; ROOM_BYTES];
/// When less of them is left, more are written.
const ROOM_BYTES_MIN: u64 = 64 << 10;

const HEALTHY: u8 = 0;
const WRITE_FAILED: u8 = 1;
const SYNC_FAILED: u8 = 2;

/// What a new log is told.
#[derive(Clone)]
pub struct LogOptions {
    /// UniqueId: fresh and random.
    pub id: LogId,
    /// UniqueId of the log before; [`LogId::NONE`] for the first.
    pub previous_id: LogId,
    /// The disk; becomes Vhd2DataWriteGuid.
    pub disk_id: [u8; 16],
    /// Unix nanoseconds.
    pub created_ns: u64,
    /// Sequence number of the first entry; sequences run per disk, over all its logs.
    pub first_sequence: u64,
    /// Fresh and random, from a source that guests cannot guess. Never used for a second log.
    pub key: [u8; 32],
    /// Keep the bytes the log file already has (a recycled, written-through file): they are overwritten, not grown.
    pub keep_space: bool,
}

/// What a sealed log is, for those who ship and apply it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedLog {
    /// UniqueId.
    pub id: LogId,
    /// PreviousUniqueId.
    pub previous_id: LogId,
    /// The disk.
    pub disk_id: [u8; 16],
    /// Sequence number of the first entry (of the next one to come, when there are none).
    pub first_sequence: u64,
    /// One past the sequence number of the last entry.
    pub next_sequence: u64,
    /// Entries.
    pub entry_count: u64,
    /// Bytes of data of all writes.
    pub data_bytes: u64,
    /// Size of the `.hrl`.
    pub log_size_bytes: u64,
    /// Size of the `.hrx`.
    pub index_size_bytes: u64,
    /// Time of the first entry; 0 when there are none.
    pub first_time_ns: u64,
    /// Time of the last entry; 0 when there are none.
    pub last_time_ns: u64,
}

/// An open log.
pub struct LogWriter<F: LogFile> {
    pub(crate) log: F,
    pub(crate) index: F,
    pub(crate) identity: IndexHeader,
    pub(crate) seal_key: SealKey,
    pub(crate) tail: Tail,
    pub(crate) scratch: Scratch,
    pub(crate) durable: AtomicU64,
    /// One past the bytes of the log that are known to be written, whatever they are.
    room_end: u64,
    failure: AtomicU8,
}

impl<F: LogFile> LogWriter<F> {
    /// Begins a log in two files: header and an empty metadata block, and the index header; both are durable when
    /// this returns (their names are not: see [`crate::sync_folder`]).
    ///
    /// # Errors
    /// LOG_WRITE_FAILED.
    pub fn create(log: F, index: F, options: LogOptions) -> Result<Self> {
        let identity = IndexHeader {
            id: options.id,
            previous_id: options.previous_id,
            disk_id: options.disk_id,
            key: options.key,
            first_sequence: options.first_sequence,
            created_ns: options.created_ns,
            metadata_size_bytes: METADATA_BYTES,
        };
        if !options.keep_space {
            empty(&log)?;
        }
        empty(&index)?;
        let tail = Tail {
            position: DATA_START,
            last_block: FIRST_BLOCK,
            next_sequence: options.first_sequence,
            entry_count: 0,
            data_bytes: 0,
            first_time_ns: 0,
            last_time_ns: 0,
        };
        let mut writer = Self::resume(log, index, identity, tail, Scratch::default(), 0);
        writer.write_beginning()?;
        writer.room_end = size_bytes(&writer.log)?;
        Ok(writer)
    }

    pub(crate) fn resume(
        log: F,
        index: F,
        identity: IndexHeader,
        tail: Tail,
        scratch: Scratch,
        durable: u64,
    ) -> Self {
        let seal_key = SealKey { id: identity.id, key: identity.key };
        let (durable, failure) = (AtomicU64::new(durable), AtomicU8::new(HEALTHY));
        Self { log, index, identity, seal_key, tail, scratch, durable, room_end: 0, failure }
    }

    fn write_beginning(&self) -> Result<()> {
        let header = self.open_header().encode();
        let block = make_block(&[], 0, FIRST_BLOCK, 0, &self.seal_key);
        write(&self.log, &mut [IoSlice::new(&header), IoSlice::new(&block)], 0)?;
        write(&self.index, &mut [IoSlice::new(&self.identity.encode())], 0)?;
        self.sync()?;
        self.sync_index()
    }

    fn open_header(&self) -> LogHeader {
        let identity = &self.identity;
        let created = seconds_since_2000(identity.created_ns);
        LogHeader::open(identity.id, identity.previous_id, identity.disk_id, created)
    }

    /// Appends entries, in order, with one vectored write to the log and one write to the index.
    ///
    /// When it returns, the entries survive the death of the process; a power loss only after [`sync`](Self::sync).
    /// Nothing is appended when it fails.
    ///
    /// # Errors
    /// LOG_UNALIGNED, LOG_INVALID_REQUEST (the writer stays usable); LOG_WRITE_FAILED (it is poisoned: seal it and
    /// begin the next log), LOG_WRITER_FAILED (it was poisoned before).
    pub fn append(&mut self, appends: &[Append<'_>]) -> Result<()> {
        self.write_batch(appends, false)
    }

    /// [`append`](Self::append) and a metadata block behind it, in the same write: after the next
    /// [`sync`](Self::sync) the log is readable up to here without its index. The file may be written ahead with zeros
    /// behind that, in a write of its own, so that the next syncs do not find it longer.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_and_checkpoint(&mut self, appends: &[Append<'_>]) -> Result<()> {
        self.write_batch(appends, true)?;
        self.make_room();
        Ok(())
    }

    /// Describes all entries so far by a metadata block. Writes nothing when they all are.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn checkpoint(&mut self) -> Result<()> {
        self.append_and_checkpoint(&[])
    }

    fn write_batch(&mut self, appends: &[Append<'_>], checkpoint: bool) -> Result<()> {
        self.refuse_if_failed()?;
        appends.iter().try_for_each(|append| append.check(self.log.path()))?;
        let (before, durable) = (self.tail, self.durable.load(Ordering::Relaxed));
        let seed = self.identity.record_seed();
        let mut stage = Stage::start(before, &mut self.scratch, &self.seal_key, seed, durable);
        for append in appends {
            append.pieces().for_each(|piece| stage.push(piece));
        }
        if checkpoint {
            stage.close_block();
        }
        match write_stage(&self.log, &self.index, &stage, &before) {
            Ok(()) => {
                self.tail = stage.commit();
                Ok(())
            }
            Err(e) => {
                stage.roll_back();
                self.fail();
                Err(e)
            }
        }
    }

    /// Writes zeros ahead of a log that is flushed: a sync of a file that grew since the last one waits for the file
    /// system's journal, too. What stands behind the tail is never taken for a part of the log (see `recover`).
    fn make_room(&mut self) {
        let position = self.tail.position;
        if position + ROOM_BYTES_MIN <= self.room_end {
            return;
        }
        // Without room the next append fails by itself, and tells.
        if self.log.write_all_at(&mut [IoSlice::new(&ZEROS)], position).is_ok() {
            self.room_end = position + ROOM_BYTES as u64;
        }
    }

    /// Poisons the writer and takes back, as far as that works, what the failed write left behind: a record of an
    /// entry that was refused must not be found by a later recovery.
    fn fail(&mut self) {
        self.failure.fetch_max(WRITE_FAILED, Ordering::Relaxed);
        // Not worth reporting: the caller is told of the failure that came first, and sealing cuts again.
        let _ = self.index.set_size_bytes(record_offset(self.tail.entry_count));
        let _ = self.log.set_size_bytes(self.tail.position);
    }

    fn refuse_if_failed(&self) -> Result<()> {
        if self.is_failed() {
            let reason = format!("it ends with {} entries", self.tail.entry_count);
            return Err(HrlError::WriterFailed(Place::new(self.log.path(), self.tail.position, reason)));
        }
        Ok(())
    }

    /// Makes the log durable (fdatasync of the `.hrl` alone). Entries that a metadata block describes then survive a
    /// power loss; see [`append_and_checkpoint`](Self::append_and_checkpoint).
    ///
    /// # Errors
    /// LOG_WRITE_FAILED: the writer is poisoned, a failed sync is never retried.
    pub fn sync(&self) -> Result<()> {
        let position = self.tail.position;
        self.sync_file(&self.log)?;
        self.note_durable(position);
        Ok(())
    }

    /// Makes the index durable.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_index(&self) -> Result<()> {
        self.sync_file(&self.index)
    }

    fn sync_file(&self, file: &F) -> Result<()> {
        self.refuse_if_failed()?;
        file.sync_data().map_err(|e| {
            self.note_sync_failed();
            HrlError::write(file.path(), self.tail.position, "sync", e)
        })
    }

    /// Tells the writer that its log was synced by other means while it stood at `position` or later. Blocks written
    /// from now on say so, and recovery then takes a loss below `position` for damage.
    pub fn note_durable(&self, position: u64) {
        self.durable.fetch_max(position.min(self.tail.position), Ordering::Relaxed);
    }

    /// Poisons the writer for good, after a sync by other means failed.
    pub fn note_sync_failed(&self) {
        self.failure.store(SYNC_FAILED, Ordering::Relaxed);
    }

    /// Closes the log: last block, header with EOLLocation, both files cut to their length and durable.
    ///
    /// Allowed after a failed write: the good entries are sealed. When it fails the log stays open in the files, and
    /// [`recover`](crate::recover) can go on with it. Refused after a failed sync: the kernel may have dropped the
    /// pages, and a second sync would succeed without them.
    ///
    /// # Errors
    /// LOG_WRITE_FAILED; LOG_WRITER_FAILED after a failed sync.
    pub fn seal(mut self, time_ns: u64) -> Result<SealedLog> {
        if self.failure.load(Ordering::Relaxed) == SYNC_FAILED {
            self.refuse_if_failed()?;
        }
        resize(&self.index, record_offset(self.tail.entry_count))?;
        resize(&self.log, self.tail.position)?;
        self.failure.store(HEALTHY, Ordering::Relaxed);
        self.write_batch(&[], true)?;
        self.sync()?;
        self.sync_index()?;
        let header = LogHeader {
            end_of_log: self.tail.position,
            current_size_bytes: self.tail.position,
            entry_count: self.tail.entry_count,
            modified_seconds: seconds_since_2000(time_ns),
            ..self.open_header()
        };
        // One sector holds all fields that differ from the open header, so a torn write leaves the log open or closed.
        write(&self.log, &mut [IoSlice::new(&header.encode())], 0)?;
        self.sync()?;
        Ok(self.describe())
    }

    fn describe(&self) -> SealedLog {
        SealedLog {
            id: self.identity.id,
            previous_id: self.identity.previous_id,
            disk_id: self.identity.disk_id,
            first_sequence: self.identity.first_sequence,
            next_sequence: self.tail.next_sequence,
            entry_count: self.tail.entry_count,
            data_bytes: self.tail.data_bytes,
            log_size_bytes: self.tail.position,
            index_size_bytes: record_offset(self.tail.entry_count),
            first_time_ns: self.tail.first_time_ns,
            last_time_ns: self.tail.last_time_ns,
        }
    }

    /// UniqueId.
    pub fn id(&self) -> LogId {
        self.identity.id
    }

    /// PreviousUniqueId.
    pub fn previous_id(&self) -> LogId {
        self.identity.previous_id
    }

    /// The disk.
    pub fn disk_id(&self) -> [u8; 16] {
        self.identity.disk_id
    }

    /// Sequence number of the first entry.
    pub fn first_sequence(&self) -> u64 {
        self.identity.first_sequence
    }

    /// Sequence number of the next entry.
    pub fn next_sequence(&self) -> u64 {
        self.tail.next_sequence
    }

    /// Entries so far.
    pub fn entry_count(&self) -> u64 {
        self.tail.entry_count
    }

    /// Bytes of data so far.
    pub fn data_bytes(&self) -> u64 {
        self.tail.data_bytes
    }

    /// Bytes of the log so far: where the next byte goes.
    pub fn log_size_bytes(&self) -> u64 {
        self.tail.position
    }

    /// Time of the last entry; 0 when there are none.
    pub fn last_time_ns(&self) -> u64 {
        self.tail.last_time_ns
    }

    /// Whether an earlier write or sync failed.
    pub fn is_failed(&self) -> bool {
        self.failure.load(Ordering::Relaxed) != HEALTHY
    }

    /// The log's file, for a sync outside of the owner's lock (then [`note_durable`](Self::note_durable)).
    pub fn log_file(&self) -> &F {
        &self.log
    }

    /// The index's file.
    pub fn index_file(&self) -> &F {
        &self.index
    }
}

fn write_stage<F: LogFile>(log: &F, index: &F, stage: &Stage<'_, '_>, before: &Tail) -> Result<()> {
    let mut slices = stage.slices();
    if !slices.is_empty() {
        write(log, &mut slices, before.position)?;
    }
    if stage.records().is_empty() {
        return Ok(());
    }
    write(index, &mut [IoSlice::new(stage.records())], record_offset(before.entry_count))
}

pub(crate) fn write<F: LogFile>(file: &F, slices: &mut [IoSlice<'_>], offset: u64) -> Result<()> {
    file.write_all_at(slices, offset).map_err(|e| HrlError::write(file.path(), offset, "write", e))
}

/// Cuts a file to nothing. A file that is empty is left alone: ext4 takes a truncation to nothing for the beginning of
/// a replacement, and writes the file out when it is closed.
fn empty<F: LogFile>(file: &F) -> Result<()> {
    if size_bytes(file)? == 0 { Ok(()) } else { resize(file, 0) }
}

pub(crate) fn resize<F: LogFile>(file: &F, size_bytes: u64) -> Result<()> {
    file.set_size_bytes(size_bytes).map_err(|e| HrlError::write(file.path(), size_bytes, "set the size", e))
}

const _: () = assert!(INDEX_HEADER_BYTES == 4096 && METADATA_BYTES as usize == BLOCK_BYTES);
