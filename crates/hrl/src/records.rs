//! Records of an index by number, read a window at a time.

use crate::data::{read, size_bytes};
use crate::entry::Entry;
use crate::error::Result;
use crate::file::LogFile;
use crate::index::{INDEX_HEADER_BYTES, RECORD_BYTES, parse_record, record_offset};

const WINDOW_RECORDS: u64 = 1024;

/// Reads records by their number, in any order, cheaply in ascending order.
pub struct Records<'f, F: LogFile> {
    index: &'f F,
    seed: u64,
    window: Vec<u8>,
    window_start: u64,
    slot_count: u64,
}

impl<'f, F: LogFile> Records<'f, F> {
    /// Of all whole slots that the file has now.
    pub fn open(index: &'f F, seed: u64) -> Result<Self> {
        let records_bytes = size_bytes(index)?.saturating_sub(INDEX_HEADER_BYTES as u64);
        let slot_count = records_bytes / RECORD_BYTES as u64;
        Ok(Self { index, seed, window: Vec::new(), window_start: 0, slot_count })
    }

    /// How many whole slots the file has, good or not.
    pub fn slot_count(&self) -> u64 {
        self.slot_count
    }

    /// The n-th record; `None` when it is past the end or does not check.
    pub fn get(&mut self, number: u64) -> Result<Option<Entry>> {
        if number >= self.slot_count {
            return Ok(None);
        }
        let held = (self.window.len() / RECORD_BYTES) as u64;
        if number < self.window_start || number >= self.window_start + held {
            self.load(number)?;
        }
        let at = (number - self.window_start) as usize * RECORD_BYTES;
        Ok(self.window.get(at..at + RECORD_BYTES).and_then(|record| parse_record(record, self.seed)))
    }

    fn load(&mut self, number: u64) -> Result<()> {
        let count = WINDOW_RECORDS.min(self.slot_count - number);
        self.window.resize(count as usize * RECORD_BYTES, 0);
        self.window_start = number;
        if !read(self.index, &mut self.window, record_offset(number))? {
            self.window.clear(); // The file shrank under us: what is gone does not check.
        }
        Ok(())
    }
}
