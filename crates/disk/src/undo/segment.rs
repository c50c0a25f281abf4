//! A segment open for reading: finds the entry at an offset in the index on disk.
//!
//! Entries are sorted by offset and disjoint, and records of the index are of one size, so an entry is found by bisection:
//! first among *fences* (the offset of every 64th entry, remembered once it was read), then in the page of 64 records
//! between two of them. Opening reads two headers, whatever the size. What is read is checked before it is handed out: a
//! page by the hashes of its records and their order, data by its hash when an entry is touched for the first time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use secondsite_hrl::{Entry, HrlError, LogReader, Operation, Place as FilePlace};

use super::name::SegmentName;
use crate::error::{DiskError, Result};

/// Records that are read at once: 4 KiB.
const PAGE_RECORDS: u64 = 64;

/// A segment, open.
pub(crate) struct Segment {
    pub(crate) name: SegmentName,
    path: PathBuf,
    log: LogReader,
    /// One more than the offset of the first entry of each page; 0 where it was not read yet.
    fences: OnceLock<Vec<AtomicU64>>,
    /// The page that was looked at last, by whomever: scans ask for one range behind the other.
    recent: Mutex<Option<Arc<Page>>>,
    /// A bit for each entry whose data was checked.
    checked: OnceLock<Vec<AtomicU64>>,
}

/// What the log of a segment said, as damage of the undo where it is that.
pub(crate) fn damaged(error: HrlError) -> DiskError {
    match error {
        HrlError::ReadFailed(place, e) if e.kind() == std::io::ErrorKind::NotFound => {
            DiskError::UndoDamaged(FilePlace { reason: "the file is missing".into(), ..place })
        }
        error @ (HrlError::ReadFailed(..) | HrlError::VersionUnsupported(_)) => DiskError::Log(error),
        error => DiskError::UndoDamaged(error.place().clone()),
    }
}

impl Segment {
    /// Opens a segment and checks what can be checked without reading its entries.
    ///
    /// # Errors
    /// UNDO_DAMAGED, LOG_READ_FAILED, LOG_VERSION_UNSUPPORTED.
    pub(crate) fn open(folder: &Path, name: SegmentName) -> Result<Self> {
        let path = name.path(folder);
        let log = LogReader::open(&path).map_err(damaged)?;
        if !log.has_index() {
            let reason = "its index is missing".to_owned();
            return Err(DiskError::UndoDamaged(FilePlace { path, offset: 0, reason }));
        }
        Ok(Self {
            name,
            path,
            log,
            fences: OnceLock::new(),
            recent: Mutex::new(None),
            checked: OnceLock::new(),
        })
    }

    /// The log.
    pub(crate) fn log(&self) -> &LogReader {
        &self.log
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn page_count(&self) -> u64 {
        self.log.entry_count().div_ceil(PAGE_RECORDS)
    }

    fn read_page(&self, page: u64, entries: &mut Vec<Entry>) -> Result<()> {
        let first = page * PAGE_RECORDS;
        self.log.read_entries(first, PAGE_RECORDS as usize, entries).map_err(damaged)?;
        if let Some(at) = entries.windows(2).position(|pair| pair[1].offset < pair[0].end()) {
            return Err(self.out_of_order(first + at as u64 + 1));
        }
        Ok(())
    }

    /// Reads all entries and checks that each is behind the one before.
    pub(crate) fn check_order(&self) -> Result<()> {
        let (mut entries, mut end) = (Vec::new(), 0);
        for page in 0..self.page_count() {
            self.read_page(page, &mut entries)?;
            if entries.first().is_some_and(|entry| entry.offset < end) {
                return Err(self.out_of_order(page * PAGE_RECORDS));
            }
            end = entries.last().map_or(end, Entry::end);
        }
        Ok(())
    }

    fn out_of_order(&self, number: u64) -> DiskError {
        let reason = format!("entry {number} is not behind the one before");
        DiskError::UndoDamaged(FilePlace { path: self.path.clone(), offset: 0, reason })
    }

    /// A page, read when it is not the one that was looked at last.
    fn page(&self, number: u64) -> Result<Arc<Page>> {
        let recent = self.recent.lock().clone();
        if let Some(page) = recent.filter(|page| page.number == number) {
            return Ok(page);
        }
        let mut entries = Vec::new();
        self.read_page(number, &mut entries)?;
        let page = Arc::new(Page { number, entries });
        *self.recent.lock() = Some(page.clone());
        Ok(page)
    }

    /// The offset of the first entry of a page.
    fn fence(&self, number: u64) -> Result<u64> {
        let pages = self.page_count() as usize;
        let fences = self.fences.get_or_init(|| (0..pages).map(|_| AtomicU64::new(0)).collect());
        let fence = &fences[number as usize];
        let known = fence.load(Ordering::Relaxed);
        if known > 0 {
            return Ok(known - 1);
        }
        let offset = self.page(number)?.entries.first().map_or(u64::MAX - 1, |entry| entry.offset);
        fence.store(offset + 1, Ordering::Relaxed);
        Ok(offset)
    }

    /// Fills `buffer` with a part of what an entry holds, beginning at `offset` of the disk.
    pub(crate) fn read(&self, number: u64, entry: &Entry, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if entry.operation != Operation::Write {
            buffer.fill(0);
            return Ok(());
        }
        let words = self.log.entry_count().div_ceil(64) as usize;
        let checked = self.checked.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
        let (word, bit) = (&checked[(number / 64) as usize], 1 << (number % 64));
        let inside = (offset - entry.offset) as usize;
        if word.load(Ordering::Relaxed) & bit != 0 {
            return self.log.read_data_part(entry, inside as u64, buffer).map_err(damaged);
        }
        let mut data = vec![0; entry.length_bytes as usize];
        self.log.read_data(entry, &mut data).map_err(damaged)?;
        buffer.copy_from_slice(&data[inside..inside + buffer.len()]);
        word.fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }
}

/// A page of records, read and checked.
struct Page {
    number: u64,
    entries: Vec<Entry>,
}

/// Finds entries of one segment for one caller, who mostly asks for one behind the other.
pub(crate) struct Lookup<'s> {
    segment: &'s Segment,
    page: Option<Arc<Page>>,
}

impl<'s> Lookup<'s> {
    /// The segment.
    pub(crate) fn segment(&self) -> &'s Segment {
        self.segment
    }

    /// Begins with the page that somebody looked at last.
    pub(crate) fn new(segment: &'s Segment) -> Self {
        Self { segment, page: segment.recent.lock().clone() }
    }

    /// The first entry, with its number, that ends behind `offset`.
    ///
    /// # Errors
    /// UNDO_DAMAGED, LOG_READ_FAILED.
    pub(crate) fn ending_after(&mut self, offset: u64) -> Result<Option<(u64, Entry)>> {
        let page_count = self.segment.page_count();
        if page_count == 0 {
            return Ok(None);
        }
        if let Some(found) = self.page.as_deref().and_then(|page| page.find(offset)) {
            return Ok(Some(found));
        }
        let (mut low, mut high) = (0, page_count);
        while high - low > 1 {
            let middle = low.midpoint(high);
            match self.segment.fence(middle)? <= offset {
                true => low = middle,
                false => high = middle,
            }
        }
        // Where all of a page ends before the offset, the next entry is the first of the page behind it.
        for number in low..page_count.min(low + 2) {
            let page = self.segment.page(number)?;
            let at = page.entries.partition_point(|entry| entry.end() <= offset);
            let found = page.entries.get(at).copied();
            self.page = Some(page);
            if let Some(entry) = found {
                return Ok(Some((number * PAGE_RECORDS + at as u64, entry)));
            }
        }
        Ok(None)
    }
}

impl Page {
    /// The first entry that ends behind `offset`, where this page has it for sure.
    fn find(&self, offset: u64) -> Option<(u64, Entry)> {
        let is_first = self.number == 0 || self.entries.first().is_some_and(|entry| entry.offset <= offset);
        let at = self.entries.partition_point(|entry| entry.end() <= offset);
        let entry = self.entries.get(at).filter(|_| is_first)?;
        Some((self.number * PAGE_RECORDS + at as u64, *entry))
    }
}
