//! What the tests of undo, views and overlays share: a generator, logs, and options that repeat.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod crash;
pub mod layer;
pub mod replica;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use secondsite_disk::{BlockDevice, Extent, PointView, Result, UndoOptions, ViewOptions, Work};
use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogWriter, index_path};

/// Nothing stops.
pub static GO_ON: AtomicBool = AtomicBool::new(false);

static COUNTER: AtomicU64 = AtomicU64::new(1);

/// A small generator of good numbers.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Numbers no two calls of which are the same.
pub fn fill(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
}

pub fn undo_options() -> UndoOptions {
    UndoOptions { disk_id: [9; 16], clock: Arc::new(|| 5), random: Arc::new(fill) }
}

pub fn view_options(point: u64) -> ViewOptions {
    ViewOptions { point, size_bytes: None, random: Arc::new(fill) }
}

pub fn open_view(folder: &Path, image: &Arc<dyn BlockDevice>, point: u64) -> Result<PointView> {
    PointView::open(folder, image.clone(), &view_options(point))
}

pub fn log_options() -> LogOptions {
    let (mut id, mut key) = ([0; 16], [0; 32]);
    fill(&mut id);
    fill(&mut key);
    LogOptions {
        id: LogId(id),
        previous_id: LogId::NONE,
        disk_id: [9; 16],
        created_ns: 0,
        first_sequence: 0,
        key,
        keep_space: false,
    }
}

/// One change of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// 0 discards, 1 zeroes, everything else writes.
    pub operation: u64,
    pub offset: u64,
    pub length_bytes: u64,
    pub fill: u8,
}

impl Change {
    /// Any change of a disk of so many sectors.
    pub fn any(random: &mut Random, sector_count: u64, length_max: u64) -> Self {
        let count = 1 + random.below(length_max.min(sector_count));
        let sector = random.below(sector_count - count + 1);
        let fill = 1 + random.below(255) as u8;
        Self { operation: random.below(6), offset: sector * 512, length_bytes: count * 512, fill }
    }

    /// Carries it out on an array of bytes.
    pub fn apply(&self, bytes: &mut [u8]) {
        let range = self.offset as usize..(self.offset + self.length_bytes) as usize;
        bytes[range].fill(if self.operation < 2 { 0 } else { self.fill });
    }

    /// Carries it out on a disk.
    pub fn carry_out(&self, device: &dyn BlockDevice) -> Result<()> {
        match self.operation {
            0 => device.discard(self.offset, self.length_bytes),
            1 => device.write_zeroes(self.offset, self.length_bytes, false),
            _ => device.write_at(self.offset, &vec![self.fill; self.length_bytes as usize]),
        }
    }
}

/// A sealed log of changes.
pub fn log_of(folder: &Path, changes: &[Change]) -> PathBuf {
    let path = folder.join(format!("{}.hrl", COUNTER.fetch_add(1, Ordering::Relaxed)));
    let (log, index) = (FsLogFile::create_new(&path), FsLogFile::create_new(&index_path(&path)));
    let mut writer =
        LogWriter::create(log.expect("a log"), index.expect("an index"), log_options()).expect("a writer");
    for change in changes {
        let data = vec![change.fill; change.length_bytes as usize];
        let append = match change.operation {
            0 => Append::discard(change.offset, change.length_bytes, 1),
            1 => Append::write_zeroes(change.offset, change.length_bytes, 1),
            _ => Append::write(change.offset, &data, 1),
        };
        writer.append(&[append]).expect("an append");
    }
    writer.seal(2).expect("a seal");
    path
}

pub fn bytes_of(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xEE; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).expect("a read");
    bytes
}

/// Where two arrays differ first.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b).or((a.len() != b.len()).then_some(a.len().min(b.len())))
}

/// What each sector may hold after a power loss.
#[derive(Clone)]
pub struct Versions(Vec<Vec<u8>>);

impl Versions {
    pub fn flushed(bytes: &[u8]) -> Self {
        Self(bytes.chunks(512).map(|sector| vec![sector[0]]).collect())
    }

    pub fn note(&mut self, change: &Change) {
        let fill = if change.operation < 2 { 0 } else { change.fill };
        let first = (change.offset / 512) as usize;
        self.0[first..first + (change.length_bytes / 512) as usize]
            .iter_mut()
            .for_each(|sector| sector.push(fill));
    }

    pub fn assert_holds(&self, bytes: &[u8], what: &str) {
        for (index, (sector, versions)) in bytes.chunks(512).zip(&self.0).enumerate() {
            assert!(sector[1..] == sector[..sector.len() - 1], "{what}: sector {index} is torn");
            assert!(
                versions.contains(&sector[0]),
                "{what}: sector {index} is {}, not of {versions:?}",
                sector[0]
            );
        }
    }
}

/// An image that says "stop" after so many writes.
pub struct Stopping {
    pub image: Arc<dyn BlockDevice>,
    pub left: AtomicU64,
    pub work: Arc<Work>,
}

impl Stopping {
    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.work.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl BlockDevice for Stopping {
    fn path(&self) -> &Path {
        self.image.path()
    }
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        512
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.image.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.count();
        self.image.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.count();
        self.image.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.count();
        self.image.discard(offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.image.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.image.extent_at(offset, end)
    }
}
