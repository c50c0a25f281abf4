//! A tracked disk over memory, with an oracle and a replica that knows nothing but what is shipped to it.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{
    BlockDevice, FlushMode, Mode, Opened, QueuedLog, TrackFiles, TrackOptions, TrackedDisk, cut,
};
use secondsite_hrl::faults::SplitMix;
use secondsite_hrl::{LogReader, Operation, ReadOptions, index_path};

pub const DISK_BYTES: u64 = 40 << 20;
pub const DISK_ID: [u8; 16] = [0xd1; 16];

pub type Steps = Arc<dyn Fn(&str) + Send + Sync>;

pub fn options(files: &Arc<MemoryTrackFiles>, boot: &str, seed: u64) -> TrackOptions {
    let time = AtomicU64::new(1_700_000_000_000_000_000);
    let random = std::sync::Mutex::new(SplitMix(seed));
    let mut options = TrackOptions::new(
        PathBuf::from("/track"),
        DISK_ID,
        boot.into(),
        Arc::new(move || time.fetch_add(1_000_003, Ordering::Relaxed)),
        Arc::new(move |bytes| {
            let mut random = random.lock().unwrap();
            bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        }),
    );
    options.files = files.clone();
    options
}

pub fn open(device: Arc<dyn BlockDevice>, options: TrackOptions) -> (Arc<TrackedDisk>, Opened) {
    TrackedDisk::open(device, options).unwrap()
}

/// The replica: an array of bytes, and the logs it has received.
pub struct Replica {
    pub bytes: Vec<u8>,
    pub last_id: Option<secondsite_hrl::LogId>,
    pub applied_bytes: u64,
}

impl Replica {
    pub fn new() -> Self {
        Self { bytes: vec![0; DISK_BYTES as usize], last_id: None, applied_bytes: 0 }
    }

    /// Applies a log, which must follow the one before.
    pub fn apply(&mut self, files: &MemoryTrackFiles, log: &QueuedLog) {
        if let Some(last) = self.last_id {
            assert_eq!(log.sealed.previous_id, last, "{} does not follow", log.path.display());
        }
        self.last_id = Some(log.sealed.id);
        let (hrl, hrx) = (files.open(&log.path).unwrap(), files.open(&index_path(&log.path)).unwrap());
        let reader = LogReader::from_files(hrl, Some(hrx), ReadOptions::default()).unwrap();
        let mut entries = reader.entries().unwrap();
        let mut batch = Vec::new();
        while entries.next_batch(&mut batch).unwrap() {
            for entry in &batch {
                let range = entry.offset as usize..entry.end() as usize;
                self.applied_bytes += u64::from(entry.length_bytes);
                match entry.operation {
                    Operation::Write => reader.read_data(entry, &mut self.bytes[range]).unwrap(),
                    _ => self.bytes[range].fill(0),
                }
            }
        }
    }

    /// One cycle: cut, ship, apply, release. With `is_rebase` the chain begins anew, whether a log comes or not.
    pub fn cycle(&mut self, files: &MemoryTrackFiles, disk: &Arc<TrackedDisk>, is_rebase: bool) {
        cut(std::slice::from_ref(disk)).unwrap();
        let logs = disk.unreleased_logs();
        if is_rebase {
            self.last_id = Some(secondsite_hrl::LogId::NONE);
        }
        logs.iter().for_each(|log| self.apply(files, log));
        let ids: Vec<_> = logs.iter().map(|log| log.sealed.id).collect();
        disk.release_logs(&ids).unwrap();
    }

    /// Compares what is owed, sends what differs, and returns the bytes that were compared.
    pub fn resync(&mut self, files: &MemoryTrackFiles, disk: &Arc<TrackedDisk>) -> u64 {
        disk.begin_resync().unwrap();
        let candidates = disk.candidates(0, DISK_BYTES);
        for &(offset, length) in &candidates {
            disk.read_at(offset, &mut self.bytes[offset as usize..(offset + length) as usize]).unwrap();
        }
        self.cycle(files, disk, true);
        disk.finish_resync().unwrap();
        assert!(disk.candidates(0, DISK_BYTES).is_empty());
        candidates.iter().map(|range| range.1).sum()
    }

    /// Whatever is owed is done; then both sides must be equal.
    pub fn converge(&mut self, files: &MemoryTrackFiles, disk: &Arc<TrackedDisk>) -> u64 {
        let status = disk.status();
        let is_owed = status.resync_reason.is_some() || status.mode == Mode::Map || status.changed_bytes > 0;
        let compared = if is_owed { self.resync(files, disk) } else { 0 };
        if !is_owed {
            self.cycle(files, disk, false);
        }
        assert_eq!(disk.status().resync_reason, None);
        assert_eq!(disk.status().mode, Mode::Logging);
        assert_same(&read_all(disk.as_ref()), &self.bytes, "source and replica");
        compared
    }
}

pub fn read_all(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    if left != right {
        let at = left.iter().zip(right).position(|(a, b)| a != b).unwrap();
        panic!("{what} differ first at {at} (sector {}): {} and {}", at / 512, left[at], right[at]);
    }
}

/// A random request: mostly small writes, now and then zeros and discards.
#[derive(Debug, Clone)]
pub enum Request {
    Write(u64, Vec<u8>),
    Zeroes(u64, u64),
    Discard(u64, u64),
    Flush,
}

pub fn request(random: &mut SplitMix) -> Request {
    let sectors = DISK_BYTES / 512;
    let length = 1 + random.next() % 40;
    let offset = random.next() % (sectors - length) * 512;
    let length = length * 512;
    match random.next() % 16 {
        0 => Request::Zeroes(offset, length),
        1 => Request::Discard(offset, length),
        2 | 3 => Request::Flush,
        _ => {
            let tag = random.next().to_le_bytes();
            Request::Write(offset, tag.iter().copied().cycle().take(length as usize).collect())
        }
    }
}

impl Request {
    pub fn run(&self, disk: &dyn BlockDevice) -> secondsite_disk::Result<()> {
        match self {
            Self::Write(offset, data) => disk.write_at(*offset, data),
            Self::Zeroes(offset, length) => disk.write_zeroes(*offset, *length, false),
            Self::Discard(offset, length) => disk.discard(*offset, *length),
            Self::Flush => disk.flush(),
        }
    }

    /// The sectors it changes.
    pub fn sectors(&self) -> std::ops::Range<usize> {
        let (offset, length) = match self {
            Self::Write(offset, data) => (*offset, data.len() as u64),
            Self::Zeroes(offset, length) | Self::Discard(offset, length) => (*offset, *length),
            Self::Flush => (0, 0),
        };
        offset as usize / 512..(offset + length) as usize / 512
    }

    /// What it does to an array of bytes.
    pub fn apply(&self, bytes: &mut [u8]) {
        match self {
            Self::Write(offset, data) => {
                bytes[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
            }
            Self::Zeroes(offset, length) | Self::Discard(offset, length) => {
                bytes[*offset as usize..(offset + length) as usize].fill(0);
            }
            Self::Flush => {}
        }
    }
}

pub fn log_path(number: u64) -> PathBuf {
    Path::new("/track").join(format!("disk.{number:010}.hrl"))
}

pub fn with_mode(mut options: TrackOptions, mode: FlushMode) -> TrackOptions {
    options.flush_mode = mode;
    options
}
