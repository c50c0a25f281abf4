//! Opens a log that was not sealed: proves entry after entry, cuts what cannot be proven, and goes on writing.
//!
//! **What proves an entry.** After the death of a process the page cache is whole, and the writer wrote data before
//! records: a record that checks proves its entry, and no data is read but that of the last entries (a cross-check).
//! So the time is that of reading the index. After a power loss sectors are missing anywhere behind the last sync: a
//! record proves its entry only together with the data (hash), and where records are missing the sealed blocks do,
//! found by scanning forward, with the data they describe.
//!
//! **Torn or damaged.** The log ends at the first byte that cannot be proven. Behind it there may be sealed blocks:
//! one that says "durable up to D" with D past that byte proves that the byte was safe once, so it is damage
//! (LOG_CORRUPT). Otherwise it is a torn tail. After the death of a process any later block or record is damage.
//!
//! It never needs more memory than a few windows of the files. It does not touch the disk that the log belongs to.

use crate::data::{read, size_bytes, sums_in_log};
use crate::entry::{Entry, SECTOR_BYTES};
use crate::error::{HrlError, Place, Result};
use crate::file::LogFile;
use crate::header::{HEADER_BYTES, LogHeader};
use crate::index::{IndexHeader, encode_record, record_offset};
use crate::metadata::{BLOCK_BYTES, BlockHeader, ENTRIES_PER_BLOCK_MAX, RawEntry, SLOT_BYTES, entry_slot};
use crate::records::Records;
use crate::scan::{SealedBlock, block_at, scan_blocks};
use crate::seal::{SealKey, fold};
use crate::stage::{Pending, Scratch, Tail};
use crate::time::unix_ns;
use crate::writer::{DATA_START, FIRST_BLOCK, LogWriter, resize, write};

/// After the death of a process the data of so many last entries is checked against its hash...
const CHECKED_ENTRIES: u64 = 64;
/// ...as far as they come to no more than this, so that recovery stays fast whatever the log holds.
const CHECKED_BYTES: u64 = 16 << 20;

/// What happened to the writer of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoverMode {
    /// The process died; the operating system lived on, with all that was written.
    ProcessDeath,
    /// The machine lost power or crashed: what was not synced may be there, in parts, or not.
    PowerLoss,
}

/// The end of a log that a crash left incomplete. None of it was durable or (after a process death) acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// Where the log now ends.
    pub offset: u64,
    /// Bytes of the log behind it that were cut.
    pub cut_bytes: u64,
    /// What could not be proven.
    pub reason: String,
}

/// An open log, ready to go on.
pub struct Recovered<F: LogFile> {
    /// Continues the log. Its entries can be read with [`LogWriter::read_entries`].
    pub writer: LogWriter<F>,
    /// What was cut, if anything.
    pub torn: Option<TornTail>,
    /// Entries whose records were missing and that metadata blocks proved; their times are in whole seconds.
    pub entries_proven_by_blocks: u64,
}

/// Recovers an open log in place. See the head of this file for what is kept.
///
/// The log is cut to its proven length and its index completed. After a power loss both are durable when this
/// returns; after a process death nothing is synced, as nothing needs it. Calling it twice is safe.
///
/// # Errors
/// LOG_ALREADY_SEALED; LOG_CORRUPT when bytes are missing that were durable once; LOG_INDEX_MISMATCH;
/// LOG_NOT_HRL, LOG_HEADER_CORRUPT, LOG_VERSION_UNSUPPORTED; LOG_READ_FAILED, LOG_WRITE_FAILED.
pub fn recover<F: LogFile>(log: F, index: F, mode: RecoverMode) -> Result<Recovered<F>> {
    let mut recovery = Recovery::start(&log, &index, mode, true)?;
    let torn = recovery.run()?;
    let Recovery { identity, tail, pending, proven_by_blocks, durable, log_size, .. } = recovery;
    if log_size != tail.position {
        resize(&log, tail.position)?;
    }
    resize(&index, record_offset(tail.entry_count))?;
    let scratch = Scratch::with_pending(pending);
    let writer = LogWriter::resume(log, index, identity, tail, scratch, durable);
    if mode == RecoverMode::PowerLoss {
        writer.sync()?;
        writer.sync_index()?;
    }
    Ok(Recovered { writer, torn, entries_proven_by_blocks: proven_by_blocks })
}

/// The proof, without the changes: also used to inspect an open log.
pub(crate) struct Recovery<'f, F: LogFile> {
    log: &'f F,
    index: &'f F,
    mode: RecoverMode,
    repair: bool,
    pub(crate) identity: IndexHeader,
    key: SealKey,
    log_size: u64,
    records: Records<'f, F>,
    pub(crate) tail: Tail,
    pending: Vec<Pending>,
    durable: u64,
    proven_by_blocks: u64,
    buffer: Vec<u8>,
}

impl<'f, F: LogFile> Recovery<'f, F> {
    /// Reads both headers and the empty first block. With `repair`, records that blocks prove are written back.
    pub(crate) fn start(log: &'f F, index: &'f F, mode: RecoverMode, repair: bool) -> Result<Self> {
        let identity = IndexHeader::read(index)?;
        let header = read_header(log)?;
        let log_size = size_bytes(log)?;
        check_identity(log, &header, &identity)?;
        if header.is_sealed() {
            let reason = format!("EOLLocation is {}", header.end_of_log);
            return Err(HrlError::AlreadySealed(Place::new(log.path(), 44, reason)));
        }
        let key = SealKey { id: identity.id, key: identity.key };
        match block_at(log, &key, FIRST_BLOCK, log_size)? {
            Some(block) if block.header == (BlockHeader { previous_distance: 0, entry_count: 0 }) => {}
            _ => {
                return Err(HrlError::corrupt(
                    log.path(),
                    FIRST_BLOCK,
                    "the first metadata block is damaged",
                ));
            }
        }
        let tail = Tail {
            position: DATA_START,
            last_block: FIRST_BLOCK,
            next_sequence: identity.first_sequence,
            entry_count: 0,
            data_bytes: 0,
            first_time_ns: 0,
            last_time_ns: 0,
        };
        Ok(Self {
            log,
            index,
            mode,
            repair,
            log_size,
            records: Records::open(index, identity.record_seed())?,
            identity,
            key,
            tail,
            pending: Vec::with_capacity(ENTRIES_PER_BLOCK_MAX),
            durable: 0,
            proven_by_blocks: 0,
            buffer: Vec::new(),
        })
    }

    /// Goes as far as there is proof.
    pub(crate) fn run(&mut self) -> Result<Option<TornTail>> {
        self.run_with(&mut |_| {})
    }

    /// [`run`](Self::run) that hands each proven entry to `visit`.
    pub(crate) fn run_with(&mut self, visit: &mut dyn FnMut(&Entry)) -> Result<Option<TornTail>> {
        while self.follow_record(visit)? || self.follow_block()? || self.search_block(visit)? {}
        self.judge_end()
    }

    fn follow_record(&mut self, visit: &mut dyn FnMut(&Entry)) -> Result<bool> {
        let Some(entry) = self.records.get(self.tail.entry_count)? else { return Ok(false) };
        if !self.fits(&entry) {
            return Ok(false);
        }
        if self.mode == RecoverMode::PowerLoss && !self.data_agrees(&entry)? {
            return Ok(false);
        }
        self.accept(&entry);
        visit(&entry);
        Ok(true)
    }

    fn fits(&self, entry: &Entry) -> bool {
        let end = entry.log_offset.checked_add(entry.data_bytes());
        self.pending.len() < ENTRIES_PER_BLOCK_MAX
            && entry.sequence == self.tail.next_sequence
            && entry.log_offset == self.tail.position
            && end.is_some_and(|end| end <= self.log_size)
    }

    fn data_agrees(&mut self, entry: &Entry) -> Result<bool> {
        let sums = sums_in_log(self.log, entry, &mut self.buffer)?;
        Ok(sums.is_some_and(|sums| sums.agree_with(entry)))
    }

    fn accept(&mut self, entry: &Entry) {
        self.pending.push(Pending::of(entry));
        self.tail.count(entry);
    }

    /// The block that describes exactly what is pending, right here.
    fn follow_block(&mut self) -> Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let Some(block) = block_at(self.log, &self.key, self.tail.position, self.log_size)? else {
            return Ok(false);
        };
        let fits = self.continues(block.position, &block.header)
            && block.header.entry_count as usize == self.pending.len()
            && self.pending_agrees(&block)
            && block.seal.fold == fold(self.pending.iter().map(|p| p.hash));
        if fits {
            self.accept_block(&block);
        }
        Ok(fits)
    }

    fn continues(&self, position: u64, header: &BlockHeader) -> bool {
        position.checked_sub(self.tail.last_block) == Some(header.previous_distance)
            && header.entry_count as usize <= ENTRIES_PER_BLOCK_MAX
    }

    fn pending_agrees(&self, block: &SealedBlock) -> bool {
        let slots = self.pending.iter().enumerate();
        slots.into_iter().all(|(n, pending)| entry_slot(block.bytes.as_slice(), n) == pending.slot)
    }

    fn accept_block(&mut self, block: &SealedBlock) {
        self.pending.clear();
        self.tail.last_block = block.position;
        self.tail.position = block.position + BLOCK_BYTES as u64;
        self.durable = self.durable.max(block.seal.durable);
    }

    /// Looks ahead for the next block of the chain, whose entries have no good records, and proves them by it.
    fn search_block(&mut self, visit: &mut dyn FnMut(&Entry)) -> Result<bool> {
        let (start, known) = (self.tail.position, self.pending.len());
        let (log, key, size) = (self.log, self.key.clone(), self.log_size);
        let mut adopted = None;
        let last_block = self.tail.last_block;
        let wanted = |at: u64, header: &BlockHeader| {
            let count = header.entry_count as usize;
            at.checked_sub(last_block) == Some(header.previous_distance)
                && (known + 1..=ENTRIES_PER_BLOCK_MAX).contains(&count)
        };
        scan_blocks(log, &key, start, size, wanted, |block| {
            adopted = self.entries_of(&block)?.map(|entries| (block, entries));
            Ok(adopted.is_some())
        })?;
        let Some((block, entries)) = adopted else { return Ok(false) };
        self.adopt(&block, &entries, visit)?;
        Ok(true)
    }

    /// The entries of a block that are not pending yet, when block, data and what is pending all agree.
    fn entries_of(&mut self, block: &SealedBlock) -> Result<Option<Vec<Entry>>> {
        if !self.pending_agrees(block) {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut position = self.tail.position;
        for number in self.pending.len()..block.header.entry_count as usize {
            let Some(mut entry) = self.entry_in_slot(block, number, position) else { return Ok(None) };
            let Some(sums) = sums_in_log(self.log, &entry, &mut self.buffer)? else { return Ok(None) };
            entry.sequence = self.tail.next_sequence.wrapping_add(entries.len() as u64);
            entry.data_hash = Some(sums.hash);
            position += entry.data_bytes();
            entries.push(entry);
        }
        let pending = self.pending.iter().map(|p| p.hash);
        let hashes = pending.chain(entries.iter().filter_map(|entry| entry.data_hash));
        let proven = position == block.position && fold(hashes) == block.seal.fold;
        Ok(proven.then_some(entries))
    }

    fn entry_in_slot(&self, block: &SealedBlock, number: usize, position: u64) -> Option<Entry> {
        let raw = RawEntry::parse(entry_slot(block.bytes.as_slice(), number)).ok()?;
        let data_bytes = raw.operation.data_bytes(raw.length_bytes);
        let fits =
            position.checked_add(data_bytes)? <= block.position && data_bytes.is_multiple_of(SECTOR_BYTES);
        fits.then(|| raw.entry(0, position, unix_ns(raw.seconds)))
    }

    fn adopt(&mut self, block: &SealedBlock, entries: &[Entry], visit: &mut dyn FnMut(&Entry)) -> Result<()> {
        let mut bytes = Vec::with_capacity(entries.len() * 64);
        let first = self.tail.entry_count;
        for entry in entries {
            let number = self.tail.entry_count;
            let same = |r: &Entry| Entry { time_ns: entry.time_ns, ..*r } == *entry;
            let record = self.records.get(number)?.filter(same);
            self.proven_by_blocks += u64::from(record.is_none());
            let entry = record.unwrap_or(*entry);
            bytes.extend_from_slice(&encode_record(&entry, self.identity.record_seed()));
            self.tail.count(&entry);
            visit(&entry);
        }
        self.accept_block(block);
        if self.repair {
            write(self.index, &mut [std::io::IoSlice::new(&bytes)], record_offset(first))?;
        }
        Ok(())
    }

    /// Nothing more can be proven: was it ever safe?
    fn judge_end(&mut self) -> Result<Option<TornTail>> {
        self.refuse_later_block()?;
        if self.mode == RecoverMode::ProcessDeath {
            self.refuse_later_record()?;
            self.check_last_entries()?;
        }
        let end = self.tail.position;
        let slots = self.records.slot_count();
        if self.log_size <= end && slots <= self.tail.entry_count {
            return Ok(None);
        }
        let reason = format!(
            "the log ends {} bytes later and its index {} records later, without proof",
            self.log_size.saturating_sub(end),
            slots.saturating_sub(self.tail.entry_count)
        );
        Ok(Some(TornTail { offset: end, cut_bytes: self.log_size.saturating_sub(end), reason }))
    }

    fn refuse_later_block(&self) -> Result<()> {
        let end = self.tail.position;
        let any = self.mode == RecoverMode::ProcessDeath;
        let mut witness = None;
        scan_blocks(
            self.log,
            &self.key,
            end,
            self.log_size,
            |_, _| true,
            |block| {
                if any || block.seal.durable > end {
                    witness = Some((block.position, block.seal.durable));
                }
                Ok(witness.is_some())
            },
        )?;
        match witness {
            None => Ok(()),
            Some((position, durable)) => {
                let reason = format!(
                    "data or entry {} cannot be proven, but the block at {position} is whole and says that {durable} bytes were durable",
                    self.tail.next_sequence
                );
                Err(HrlError::corrupt(self.log.path(), end, reason))
            }
        }
    }

    fn refuse_later_record(&mut self) -> Result<()> {
        for number in self.tail.entry_count..self.records.slot_count() {
            let Some(entry) = self.records.get(number)? else { continue };
            if entry.sequence == self.identity.first_sequence.wrapping_add(number) {
                let offset = record_offset(self.tail.entry_count);
                let reason = format!(
                    "record {} does not continue the log, but record {number} behind it is whole",
                    self.tail.entry_count
                );
                return Err(HrlError::corrupt(self.index.path(), offset, reason));
            }
        }
        Ok(())
    }

    fn check_last_entries(&mut self) -> Result<()> {
        let mut bytes = 0;
        for number in (self.tail.entry_count.saturating_sub(CHECKED_ENTRIES)..self.tail.entry_count).rev() {
            let Some(entry) = self.records.get(number)? else { continue };
            bytes += entry.data_bytes();
            if bytes > CHECKED_BYTES {
                break;
            }
            if !self.data_agrees(&entry)? {
                let reason = format!("the data of entry {} does not match its hash", entry.sequence);
                return Err(HrlError::corrupt(self.log.path(), entry.log_offset, reason));
            }
        }
        Ok(())
    }
}

/// Reads and checks the header of a log file.
///
/// # Errors
/// LOG_NOT_HRL (also when it is shorter than a header), LOG_VERSION_UNSUPPORTED, LOG_HEADER_CORRUPT, LOG_READ_FAILED.
pub fn read_header<F: LogFile>(log: &F) -> Result<LogHeader> {
    let mut bytes = [0; HEADER_BYTES];
    if !read(log, &mut bytes, 0)? {
        let reason = format!("shorter than a log header ({HEADER_BYTES} bytes)");
        return Err(HrlError::NotHrl(Place::new(log.path(), 0, reason)));
    }
    LogHeader::parse(&bytes, log.path())
}

/// Refuses an index that belongs to another log.
pub(crate) fn check_identity<F: LogFile>(log: &F, header: &LogHeader, identity: &IndexHeader) -> Result<()> {
    let same = header.id == identity.id
        && header.previous_id == identity.previous_id
        && header.disk_id == Some(identity.disk_id)
        && header.metadata_size_bytes == identity.metadata_size_bytes;
    if same {
        return Ok(());
    }
    let reason = format!("the log is {}, its index is of {}", header.id, identity.id);
    Err(HrlError::IndexMismatch(Place::new(log.path(), 60, reason)))
}

const _: () = assert!(SLOT_BYTES * (ENTRIES_PER_BLOCK_MAX + 2) == BLOCK_BYTES);
