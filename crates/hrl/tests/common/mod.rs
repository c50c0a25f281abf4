//! Logs in memory, a seeded run of requests, and the disk that they should make.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use secondsite_hrl::faults::{MemoryLogFile, SplitMix};
use secondsite_hrl::{Append, Entry, LogId, LogOptions, LogReader, LogWriter, Operation, ReadOptions};

pub type File = Arc<MemoryLogFile>;

/// 2023-11-14T22:13:20Z.
pub const EPOCH_NS: u64 = 1_700_000_000_000_000_000;
pub const DISK_BYTES: usize = 64 * 4096;

pub fn files() -> (File, File) {
    (Arc::new(MemoryLogFile::new("a.hrl")), Arc::new(MemoryLogFile::new("a.hrx")))
}

pub fn options(first_sequence: u64) -> LogOptions {
    LogOptions {
        id: LogId([0x11; 16]),
        previous_id: LogId([0x22; 16]),
        disk_id: [0x33; 16],
        created_ns: EPOCH_NS,
        first_sequence,
        key: [0x44; 32],
        keep_space: false,
    }
}

pub fn new_log(files: &(File, File)) -> LogWriter<File> {
    LogWriter::create(files.0.clone(), files.1.clone(), options(100)).unwrap()
}

/// A request that owns its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    pub offset: u64,
    pub length_bytes: u64,
    pub data: Vec<u8>,
    pub time_ns: u64,
}

impl Request {
    pub fn append(&self) -> Append<'_> {
        Append {
            operation: self.operation,
            offset: self.offset,
            length_bytes: self.length_bytes,
            data: &self.data,
            time_ns: self.time_ns,
        }
    }

    pub fn random(random: &mut SplitMix, number: u64) -> Self {
        let operation = match random.next() % 8 {
            0 => Operation::WriteZeroes,
            1 => Operation::Discard,
            _ => Operation::Write,
        };
        let sectors = DISK_BYTES as u64 / 512;
        let start = random.next() % sectors;
        let length = 1 + random.next() % (sectors - start).min(9);
        Self::sectors(operation, start, length, random.next(), EPOCH_NS + number * 1_000_000)
    }

    pub fn sectors(operation: Operation, start: u64, length: u64, fill: u64, time_ns: u64) -> Self {
        let length_bytes = length * 512;
        let mut random = SplitMix(fill);
        let bytes = if operation == Operation::Write { length_bytes / 8 } else { 0 };
        let data = (0..bytes).flat_map(|_| random.next().to_le_bytes()).collect();
        Self { operation, offset: start * 512, length_bytes, data, time_ns }
    }

    pub fn apply(&self, disk: &mut [u8]) {
        let range = self.offset as usize..(self.offset + self.length_bytes) as usize;
        match self.operation {
            Operation::Write => disk[range].copy_from_slice(&self.data),
            _ => disk[range].fill(0),
        }
    }

    pub fn is(&self, entry: &Entry) -> bool {
        (self.operation, self.offset, self.length_bytes)
            == (entry.operation, entry.offset, u64::from(entry.length_bytes))
    }
}

pub fn disk_of<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Vec<u8> {
    let mut disk = vec![0xEE; DISK_BYTES];
    requests.into_iter().for_each(|request| request.apply(&mut disk));
    disk
}

/// The disk that a sealed log makes.
pub fn replay(files: &(File, File), with_index: bool) -> secondsite_hrl::Result<Vec<u8>> {
    let index = with_index.then(|| files.1.clone());
    let options = ReadOptions { disk_size_bytes: Some(DISK_BYTES as u64), ignore_index: false };
    let reader = LogReader::from_files(files.0.clone(), index, options)?;
    let mut disk = vec![0xEE; DISK_BYTES];
    reader.entries()?.for_each(|entry| {
        let range = entry.offset as usize..entry.end() as usize;
        match entry.operation {
            Operation::Write => reader.read_data(entry, &mut disk[range])?,
            _ => disk[range].fill(0),
        }
        Ok(())
    })?;
    Ok(disk)
}

/// All entries of an open log.
pub fn open_entries(writer: &LogWriter<File>) -> Vec<Entry> {
    let (mut all, mut batch) = (Vec::new(), Vec::new());
    while writer.read_entries(all.len() as u64, &mut batch).unwrap() {
        all.extend_from_slice(&batch);
    }
    all
}
