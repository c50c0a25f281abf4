//! [`Overlay`] as a disk.
//!
//! A writer holds its blocks while it writes, so that two parts of one block are not filled from the base at the same time.
//! Readers hold nothing: a block's bytes are where its state says, and the one thing that could be pulled away from under a
//! reader, the data of a block that settles, goes only after the state has changed; so while settling a reader looks at the
//! states once more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use secondsite_hrl::{FsLogFile, LogFile, sync_folder};
use xxhash_rust::xxh3::xxh3_64;

use super::header::{Header, OverlayState};
use super::lock::RangeLock;
use super::map::{BLOCK_BYTES, Block, Map};
use crate::device::{BlockDevice, Extent, ExtentKind, check_range};
use crate::error::{DiskError, Place, Result};
use crate::file::{Access, FileDevice};

const DATA_NAME: &str = "overlay.data";
const MAP_NAME: &str = "overlay.map";

/// How to open an overlay.
#[derive(Debug, Clone)]
pub struct OverlayOptions {
    /// Boot id of the running system: another one than last time means that the page cache is lost.
    pub boot_id: String,
    /// Names the base; an overlay is refused over another one than it was made for. The sequence number of the point.
    pub base: u64,
    /// Bytes that are settled between two flushes, whose data is given back then; default 256 MiB.
    pub settle_flush_bytes: u64,
}

impl OverlayOptions {
    /// Options with the defaults named at each field.
    pub fn new(boot_id: String, base: u64) -> Self {
        Self { boot_id, base, settle_flush_bytes: 256 << 20 }
    }
}

/// What an overlay holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayUsage {
    /// Bytes of blocks with data of their own.
    pub data_bytes: u64,
    /// Bytes of blocks that are zeros and take no space.
    pub zero_bytes: u64,
}

/// A writable disk over a base.
pub struct Overlay {
    /// What is below absent blocks; the image once it is settled.
    base: RwLock<Arc<dyn BlockDevice>>,
    pub(super) data: Arc<dyn BlockDevice>,
    pub(super) map: Map,
    pub(super) lock: RangeLock,
    /// What the overlay is becoming or has become.
    pub(super) image: RwLock<Option<Arc<dyn BlockDevice>>>,
    /// One flush at a time: each makes durable what it found.
    flushing: Mutex<()>,
    is_poisoned: AtomicBool,
    path: PathBuf,
    size_bytes: u64,
    sector_size_bytes: u32,
    pub(super) settle_flush_bytes: u64,
    _lock: Option<std::fs::File>,
}

impl Overlay {
    /// Makes an overlay in a folder of its own, which must have none.
    ///
    /// # Errors
    /// DISK_IN_USE when there is one; DISK_FULL, DISK_WRITE_FAILED, LOG_WRITE_FAILED.
    pub fn create(folder: &Path, base: Arc<dyn BlockDevice>, options: &OverlayOptions) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| DiskError::open(folder, e))?;
        let lock = lock(folder)?;
        let map = folder.join(MAP_NAME);
        if map.exists() {
            return Err(DiskError::Busy(Place::whole(&map), "there is an overlay already".into()));
        }
        let data_path = folder.join(DATA_NAME);
        // Left by a creation that died: the map is made last, under its own name when it is whole.
        let _ = std::fs::remove_file(&data_path);
        let data = FileDevice::create(&data_path, base.size_bytes())?;
        data.flush()?;
        let unfinished = folder.join("overlay.map.unfinished");
        let _ = std::fs::remove_file(&unfinished);
        let header = header_of(&*base, options);
        Map::create(Arc::new(FsLogFile::create_new(&unfinished)?), header)?;
        std::fs::rename(&unfinished, &map).map_err(|e| DiskError::write(Place::whole(&map), e))?;
        sync_folder(folder)?;
        // Not read: in a map of a large disk there is much of nothing.
        let map = Map::over(Arc::new(FsLogFile::open(&map)?), header);
        let made = Self::assemble(base, Arc::new(data), map, options, None);
        Ok(Self { _lock: Some(lock), ..made })
    }

    /// Opens the overlay in a folder, whatever ended its last use. `image` is asked for when it was settling or is
    /// settled.
    ///
    /// # Errors
    /// DISK_NOT_FOUND; DISK_IN_USE when another process has it; OVERLAY_DAMAGED; OPTION_OUT_OF_RANGE when it was made for
    /// another base; and those of `image`.
    pub fn open(
        folder: &Path,
        base: Arc<dyn BlockDevice>,
        options: &OverlayOptions,
        image: &dyn Fn() -> Result<Arc<dyn BlockDevice>>,
    ) -> Result<Self> {
        let map = folder.join(MAP_NAME);
        if !map.exists() {
            return Err(DiskError::NotFound(Place::whole(&map)));
        }
        let lock = lock(folder)?;
        let data = Arc::new(FileDevice::open(&folder.join(DATA_NAME), Access::ReadWrite)?);
        let file: Arc<dyn LogFile> = Arc::new(FsLogFile::open(&map)?);
        let is_active = Header::read(&*file)?.state == OverlayState::Active;
        let image = if is_active { None } else { Some(image()?) };
        let opened = Self::over(base, data, file, options, image)?;
        Ok(Self { _lock: Some(lock), ..opened })
    }

    /// What the overlay in a folder is for; `None` when there is none.
    ///
    /// # Errors
    /// OVERLAY_DAMAGED, LOG_READ_FAILED.
    pub fn state_in(folder: &Path) -> Result<Option<OverlayState>> {
        let map = folder.join(MAP_NAME);
        if !map.exists() {
            return Ok(None);
        }
        Ok(Some(Header::read(&FsLogFile::open_read_only(&map)?)?.state))
    }

    /// An overlay in a device and a file, which is empty when it is new. For tests; [`create`](Self::create) and
    /// [`open`](Self::open) take folders.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over(
        base: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        map: Arc<dyn LogFile>,
        options: &OverlayOptions,
        image: Option<Arc<dyn BlockDevice>>,
    ) -> Result<Self> {
        let fresh = header_of(&*base, options);
        let is_new = map.size_bytes().is_ok_and(|size_bytes| size_bytes == 0);
        let map = if is_new {
            Map::create(map, fresh)?
        } else {
            let found = Header::read(&*map)?;
            if (found.base, found.size_bytes) != (fresh.base, fresh.size_bytes) {
                let reason = format!("an overlay over base {} of {} bytes", found.base, found.size_bytes);
                return Err(DiskError::InvalidRequest(Place::whole(map.path()), reason));
            }
            Map::open(map, found, fresh.boot)?
        };
        Ok(Self::assemble(base, data, map, options, image))
    }

    fn assemble(
        base: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        map: Map,
        options: &OverlayOptions,
        image: Option<Arc<dyn BlockDevice>>,
    ) -> Self {
        let settled = image.clone().filter(|_| map.overlay_state() == OverlayState::Settled);
        Self {
            path: base.path().to_path_buf(),
            size_bytes: base.size_bytes(),
            sector_size_bytes: base.sector_size_bytes(),
            settle_flush_bytes: options.settle_flush_bytes,
            base: RwLock::new(settled.unwrap_or(base)),
            data,
            map,
            lock: RangeLock::default(),
            image: RwLock::new(image),
            flushing: Mutex::default(),
            is_poisoned: AtomicBool::new(false),
            _lock: None,
        }
    }

    /// What it is for.
    pub fn state(&self) -> OverlayState {
        self.map.overlay_state()
    }

    /// Ranges (offset, length) that differ from the base or may, from byte `at` on, the first `count` of them. What is
    /// settled is not among them.
    pub fn ranges(&self, at: u64, count: usize) -> Vec<(u64, u64)> {
        let is_overlaid = |state| matches!(state, Block::Present | Block::Zero);
        let runs = self.map.runs(at.div_ceil(BLOCK_BYTES), count, is_overlaid);
        runs.into_iter()
            .map(|run| self.bytes_of(run.start, run.end))
            .map(|(start, end)| (start, end - start))
            .collect()
    }

    /// What it holds.
    pub fn usage(&self) -> OverlayUsage {
        let sum = |wanted| {
            let runs = self.map.runs(0, usize::MAX, |state| state == wanted);
            runs.iter().map(|run| (run.end - run.start) * BLOCK_BYTES).sum()
        };
        OverlayUsage { data_bytes: sum(Block::Present), zero_bytes: sum(Block::Zero) }
    }

    /// What it is being settled to, or is settled to.
    pub fn settling_image(&self) -> Option<Arc<dyn BlockDevice>> {
        self.image.read().clone()
    }

    pub(super) fn base(&self) -> Arc<dyn BlockDevice> {
        self.base.read().clone()
    }

    pub(super) fn set_base(&self, base: Arc<dyn BlockDevice>) {
        *self.base.write() = base;
    }

    /// The image, which there is as soon as a block is settled.
    pub(super) fn image(&self) -> Result<Arc<dyn BlockDevice>> {
        let image = self.image.read().clone();
        image.ok_or_else(|| {
            let reason = "the overlay is being settled, and its image was not given".to_owned();
            DiskError::InvalidRequest(Place::whole(&self.path), reason)
        })
    }

    /// Bytes of a run of blocks.
    pub(super) fn bytes_of(&self, first: u64, end: u64) -> (u64, u64) {
        (first * BLOCK_BYTES, (end * BLOCK_BYTES).min(self.size_bytes))
    }

    /// Where bytes of blocks in a state are read from and written to; `None` for zeros.
    fn source(&self, state: Block) -> Result<Option<Arc<dyn BlockDevice>>> {
        Ok(match state {
            Block::Absent => Some(self.base()),
            Block::Present => Some(self.data.clone()),
            Block::Zero => None,
            Block::Settled => Some(self.image()?),
        })
    }

    fn read_once(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        let end = offset + buffer.len() as u64;
        let (mut at, mut present) = (offset, Vec::new());
        while at < end {
            let (state, run_end) = self.map.run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let stop = (run_end * BLOCK_BYTES).min(end);
            let part = &mut buffer[(at - offset) as usize..(stop - offset) as usize];
            match self.source(state)? {
                Some(source) => source.read_at(at, part)?,
                None => part.fill(0),
            }
            if state == Block::Present {
                present.push(at / BLOCK_BYTES..run_end);
            }
            at = stop;
        }
        let is_active = self.map.overlay_state() == OverlayState::Active;
        Ok(is_active || present.into_iter().all(|run| self.map.is_all(run, Block::Present)))
    }

    /// Puts bytes in place; the caller holds the blocks. `home` is where whole blocks in `state` live.
    pub(super) fn put(&self, home: &dyn BlockDevice, state: Block, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let is_home = |block| self.map.is_all(block..block + 1, state);
        let (first_byte, last_byte) = self.bytes_of(first, last);
        let start = if offset > first_byte && !is_home(first) { first_byte } else { offset };
        let stop = if end < last_byte && !is_home(last - 1) { last_byte } else { end };
        if (start, stop) == (offset, end) {
            home.write_at(offset, data)?;
        } else {
            let mut whole = vec![0; (stop - start) as usize];
            let inside = (offset - start) as usize;
            let behind = inside + data.len();
            if start < offset {
                self.read_at(start, &mut whole[..inside])?;
            }
            if end < stop {
                self.read_at(end, &mut whole[behind..])?;
            }
            whole[inside..behind].copy_from_slice(data);
            home.write_at(start, &whole)?;
        }
        self.map.set(first..last, state)
    }

    /// Where writes go now.
    pub(super) fn home(&self) -> Result<(Arc<dyn BlockDevice>, Block)> {
        match self.map.overlay_state() {
            OverlayState::Active => Ok((self.data.clone(), Block::Present)),
            _ => Ok((self.image()?, Block::Settled)),
        }
    }

    fn zero_blocks(&self, first: u64, last: u64, may_unmap: bool) -> Result<()> {
        if first >= last {
            return Ok(());
        }
        let (start, end) = self.bytes_of(first, last);
        let (home, state) = self.home()?;
        if state == Block::Settled {
            home.write_zeroes(start, end - start, may_unmap)?;
            return self.map.set(first..last, Block::Settled);
        }
        let has_data = self.map.has(first..last, Block::Present);
        self.map.set(first..last, Block::Zero)?;
        if has_data { self.data.discard(start, end - start) } else { Ok(()) }
    }

    fn fail(&self) -> DiskError {
        self.is_poisoned.store(true, Ordering::Release);
        DiskError::SyncFailed(Place::whole(&self.path))
    }

    fn flush_all(&self) -> Result<()> {
        let _one = self.flushing.lock();
        if self.is_poisoned.load(Ordering::Acquire) {
            return Err(self.fail());
        }
        if self.map.overlay_state() == OverlayState::Settled {
            return self.image()?.flush();
        }
        let unsaved = self.map.unsaved_pages();
        self.data.flush().map_err(|_| self.fail())?;
        if let Some(image) = self.image.read().clone() {
            image.flush().map_err(|_| self.fail())?;
        }
        self.map.save(&unsaved).map_err(|_| self.fail())
    }
}

fn header_of(base: &dyn BlockDevice, options: &OverlayOptions) -> Header {
    Header {
        state: OverlayState::Active,
        size_bytes: base.size_bytes(),
        base: options.base,
        boot: xxh3_64(options.boot_id.trim().as_bytes()),
    }
}

fn lock(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("overlay.lock");
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = opened.map_err(|e| DiskError::open(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(DiskError::Busy(Place::whole(folder), "another process has the overlay".into()))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(DiskError::open(&path, e)),
    }
}

impl BlockDevice for Overlay {
    /// That of the base: a disk that is settled is the same disk.
    fn path(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_size_bytes(&self) -> u32 {
        self.sector_size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        while !self.read_once(offset, buffer)? {} // A block settles once.
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(self, offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        let _held = self.lock.hold(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        let (home, state) = self.home()?;
        self.put(&*home, state, offset, data)
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        check_range(self, offset, length_bytes)?;
        let end = offset + length_bytes;
        let _held = self.lock.hold(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        let first = offset.div_ceil(BLOCK_BYTES);
        let last = if end == self.size_bytes { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
        let edges = match first < last {
            true => [(offset, (first * BLOCK_BYTES)), ((last * BLOCK_BYTES).min(end), end)],
            false => [(offset, end), (end, end)],
        };
        self.zero_blocks(first, last, may_unmap)?;
        let (home, state) = self.home()?;
        for (start, stop) in edges.into_iter().filter(|(start, stop)| start < stop) {
            let zeros = [0; 2 * BLOCK_BYTES as usize];
            self.put(&*home, state, start, &zeros[..(stop - start) as usize])?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_zeroes(offset, length_bytes, true)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        let end = end.min(self.size_bytes);
        let (state, run_end) = self.map.run(offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let stop = (run_end * BLOCK_BYTES).min(end);
        let kind = match state {
            Block::Present => ExtentKind::Data,
            Block::Zero => ExtentKind::Hole,
            Block::Absent => return self.base().extent_at(offset, stop),
            Block::Settled => return self.image()?.extent_at(offset, stop),
        };
        Ok(Extent { offset, length_bytes: stop - offset, kind })
    }
}
