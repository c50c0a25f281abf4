//! A raw image file or a block device.
//!
//! Holes are found by SEEK_DATA/SEEK_HOLE and made by FALLOC_FL_PUNCH_HOLE, which both files and block devices take; where
//! the file system cannot, zeros are written. A failed fdatasync poisons the device: the kernel has dropped the pages it
//! could not write and would report success the next time, so success is never believed again.
//!
//! The image lock is QEMU's own: an OFD write lock from byte 100 on, which a QEMU that opens the file sees, and the other
//! way round. It belongs to the open file, so it ends with the process.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwrite, pwritev};
use secondsite_hrl::faults::rules::{FileOperation, permit, permitted};

use crate::device::{BlockDevice, Extent, ExtentKind, check_range};
use crate::error::{DiskError, Place, Result};

/// First byte of QEMU's lock range (RAW_LOCK_PERM_BASE).
const QEMU_LOCK_START: i64 = 100;
/// Zeros are written in pieces of this where they cannot be made otherwise.
const ZERO_PIECE_BYTES: usize = 1 << 20;
/// Longest write of a guest in one call, which is the largest folio it makes.
const GUEST_PIECE_BYTES: usize = 64 << 10;

/// Most slices that one pwritev takes (IOV_MAX of Linux).
const SLICES_MAX: usize = 1024;

/// How to open a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    ReadOnly,
    /// For reading and writing.
    ReadWrite,
    /// For reading and writing, refused while QEMU or another process of ours has it, and refusing them.
    Exclusive,
}

/// What a disk is, found without changing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_size_bytes: u32,
    /// Bytes stored, holes left out; the size of a block device.
    pub allocated_bytes: u64,
    /// Whether it is a block device.
    pub is_block_device: bool,
    /// Device and inode of a file, device number of a block device: equal for two names of one disk.
    pub identity: (u64, u64),
}

/// A raw image file or a block device, open.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    info: DiskInfo,
    /// The size, which may change.
    size_bytes: AtomicU64,
    is_read_only: bool,
    is_poisoned: AtomicBool,
    /// Longest write in one call.
    write_bytes_max: usize,
}

impl FileDevice {
    /// Opens a disk.
    ///
    /// # Errors
    /// DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED, ACCESS_DENIED, DISK_IN_USE,
    /// DISK_READ_FAILED.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let is_read_only = access == Access::ReadOnly;
        refuse_other_kinds(path)?;
        let opened = permit(path, FileOperation::Open)
            .and_then(|()| OpenOptions::new().read(true).write(!is_read_only).open(path));
        let file = opened.map_err(|e| DiskError::open(path, e))?;
        let info = info_of(path, &file)?;
        if access == Access::Exclusive {
            lock_image(path, &file)?;
        }
        Ok(Self::over(path, file, info, is_read_only))
    }

    /// Creates a sparse image that must not exist yet.
    ///
    /// # Errors
    /// DISK_IN_USE when there is a file already; DISK_SIZE_UNALIGNED, DISK_EMPTY, DISK_FULL, DISK_WRITE_FAILED.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let created = permit(path, FileOperation::Open)
            .and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).open(path));
        let file = created.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                DiskError::Busy(Place::whole(path), "a file is there already".into())
            }
            _ => DiskError::open(path, e),
        })?;
        let sized = permit(path, FileOperation::Truncate).and_then(|()| file.set_len(size_bytes));
        sized.map_err(|e| DiskError::write(Place::whole(path), e))?;
        let info = info_of(path, &file)?;
        Ok(Self::over(path, file, info, false))
    }

    fn over(path: &Path, file: File, info: DiskInfo, is_read_only: bool) -> Self {
        let size_bytes = AtomicU64::new(info.size_bytes);
        let is_poisoned = AtomicBool::new(false);
        let write_bytes_max = usize::MAX;
        Self { file, path: path.to_path_buf(), info, size_bytes, is_read_only, is_poisoned, write_bytes_max }
    }

    /// What the disk is.
    pub fn info(&self) -> DiskInfo {
        DiskInfo { size_bytes: self.size_bytes(), ..self.info }
    }

    /// The same with another size than was found: what is missing at the end then fails to be read.
    #[must_use]
    pub fn with_size(mut self, size_bytes: u64) -> Self {
        self.size_bytes = AtomicU64::new(size_bytes);
        self
    }

    /// The same disk, for one who reads all of it while somebody else writes to it.
    ///
    /// Read-ahead fills the page cache with large folios, and each small write into one walks all of its buffers. Scans
    /// read in large pieces anyway, so they go without; other openings of the disk keep theirs.
    #[must_use]
    pub fn for_scans(self) -> Self {
        // Advice: a disk that does not take it is scanned all the same.
        let _ = fadvise(&self.file, 0, None, Advice::Random);
        self
    }

    /// The same disk, for a guest that writes short and long pieces to it: long ones go in calls of 64 KiB.
    ///
    /// A long write fills the page cache with a folio of its size, and each short write into that walks all of its buffers
    /// (30 µs for 4 KiB into a folio of 1 MiB, against 5).
    #[must_use]
    pub fn for_guests(self) -> Self {
        Self { write_bytes_max: GUEST_PIECE_BYTES, ..self }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn place(&self, offset: u64, length_bytes: u64) -> Place {
        Place::new(&self.path, offset, length_bytes)
    }

    fn check_write(&self, offset: u64, length_bytes: u64) -> Result<()> {
        if self.is_read_only {
            return Err(DiskError::ReadOnly(self.place(offset, length_bytes)));
        }
        check_range(self, offset, length_bytes)
    }

    fn zero_by_writing(&self, offset: u64, length_bytes: u64) -> Result<()> {
        let zeros = vec![0; ZERO_PIECE_BYTES.min(length_bytes as usize)];
        let mut at = offset;
        while at < offset + length_bytes {
            let piece = zeros.len().min((offset + length_bytes - at) as usize);
            self.write_at(at, &zeros[..piece])?;
            at += piece as u64;
        }
        Ok(())
    }

    /// The end of a hole that seems to reach `end`. Behind the end of a file that has shrunk there is no hole: taken for one,
    /// it would be punched into a replica.
    fn end_of_hole(&self, offset: u64, end: u64) -> Result<u64> {
        let place = || self.place(offset, end - offset);
        let size_bytes = seek(&self.file, SeekFrom::End(0));
        if size_bytes.map_err(|errno| DiskError::ReadFailed(place(), errno.into()))? >= end {
            return Ok(end);
        }
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the disk has shrunk");
        Err(DiskError::ReadFailed(place(), error))
    }

    /// Tries one kind of fallocate; `false` when the file system does not know it.
    fn try_fallocate(&self, flags: FallocateFlags, offset: u64, length_bytes: u64) -> Result<bool> {
        match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, length_bytes) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(DiskError::write(self.place(offset, length_bytes), errno.into())),
        }
    }
}

impl BlockDevice for FileDevice {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn refresh_size(&self) -> Result<u64> {
        let found = seek(&self.file, SeekFrom::End(0));
        let found = found.map_err(|errno| DiskError::ReadFailed(Place::whole(&self.path), errno.into()))?;
        if !found.is_multiple_of(512) {
            return Err(DiskError::SizeUnaligned(Place::whole(&self.path)));
        }
        self.size_bytes.fetch_max(found, Ordering::AcqRel);
        Ok(found)
    }

    fn note_shrunk(&self, size_bytes: u64) {
        self.size_bytes.fetch_min(size_bytes, Ordering::AcqRel);
    }

    fn sector_size_bytes(&self) -> u32 {
        self.info.sector_size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        let read = permitted(&self.path, FileOperation::Read, offset, buffer.len() as u64)
            .map_err(|stopped| stopped.error)
            .and_then(|()| self.file.read_exact_at(buffer, offset));
        read.map_err(|e| DiskError::ReadFailed(self.place(offset, buffer.len() as u64), e))
    }

    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        check_range(self, offset, buffer.len() as u64)?;
        let length = buffer.len();
        if permitted(&self.path, FileOperation::Read, offset, length as u64).is_err() {
            return Ok(false); // `read_at` meets the failure, and tells it.
        }
        let read = preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        // Part of it in memory, none of it, or a file system that does not know: all of that is a wait.
        Ok(read.is_ok_and(|read| read == length))
    }

    fn write_vectored_at(&self, offset: u64, slices: &[IoSlice<'_>]) -> Result<()> {
        let length_bytes = slices.iter().map(|slice| slice.len() as u64).sum();
        self.check_write(offset, length_bytes)?;
        let written = permitted(&self.path, FileOperation::Write, offset, length_bytes)
            .map_err(|stopped| stopped.error)
            .and_then(|()| write_all_vectored(&self.file, offset, slices, self.write_bytes_max));
        written.map_err(|e| DiskError::write(self.place(offset, length_bytes), e))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        let written = match permitted(&self.path, FileOperation::Write, offset, data.len() as u64) {
            Ok(()) => write_all_vectored(&self.file, offset, &[IoSlice::new(data)], self.write_bytes_max),
            // The part before a failure reaches the disk.
            Err(stopped) => {
                let part = &data[..data.len().min(stopped.permitted_bytes as usize)];
                self.file.write_all_at(part, offset).and(Err(stopped.error))
            }
        };
        written.map_err(|e| DiskError::write(self.place(offset, data.len() as u64), e))
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.check_write(offset, length_bytes)?;
        let permitted = permitted(&self.path, FileOperation::Write, offset, length_bytes);
        permitted.map_err(|stopped| DiskError::write(self.place(offset, length_bytes), stopped.error))?;
        let flags = if may_unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        if self.try_fallocate(flags, offset, length_bytes)? {
            return Ok(());
        }
        self.zero_by_writing(offset, length_bytes)
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_zeroes(offset, length_bytes, true)
    }

    fn flush(&self) -> Result<()> {
        let is_failed = self.is_poisoned.load(Ordering::Acquire);
        let sync = || permit(&self.path, FileOperation::Sync).and_then(|()| self.file.sync_data());
        if is_failed || sync().is_err() {
            self.is_poisoned.store(true, Ordering::Release);
            return Err(DiskError::SyncFailed(Place::whole(&self.path)));
        }
        Ok(())
    }

    fn start_writeback(&self, offset: u64, length_bytes: u64) {
        let (Ok(offset), Ok(length_bytes)) = (i64::try_from(offset), i64::try_from(length_bytes)) else {
            return;
        };
        // SAFETY: the descriptor is open for the whole call, which takes numbers only.
        unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, length_bytes, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        let end = end.min(self.size_bytes());
        permitted(&self.path, FileOperation::Read, offset, 512)
            .map_err(|stopped| DiskError::ReadFailed(self.place(offset, 512), stopped.error))?;
        let data = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => at.min(end),
            Err(Errno::NXIO) => self.end_of_hole(offset, end)?,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => offset, // No holes here: all of it counts as data.
            Err(errno) => return Err(DiskError::ReadFailed(self.place(offset, end - offset), errno.into())),
        };
        if data > offset {
            return Ok(Extent { offset, length_bytes: data - offset, kind: ExtentKind::Hole });
        }
        let hole = match seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(at) => at.clamp(offset, end),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => end,
            Err(errno) => return Err(DiskError::ReadFailed(self.place(offset, end - offset), errno.into())),
        };
        Ok(Extent { offset, length_bytes: hole.max(offset + 512).min(end) - offset, kind: ExtentKind::Data })
    }
}

fn write_all_vectored(
    file: &File,
    mut offset: u64,
    slices: &[IoSlice<'_>],
    bytes_max: usize,
) -> io::Result<()> {
    let mut slices = slices.to_vec();
    let mut slices = slices.as_mut_slice();
    IoSlice::advance_slices(&mut slices, 0); // Drops empty ones in front, so that 0 written means no progress.
    while !slices.is_empty() {
        match write_some(file, slices, offset, bytes_max) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// One call: as many slices as fit into `bytes_max`, or the beginning of the first.
fn write_some(
    file: &File,
    slices: &[IoSlice<'_>],
    offset: u64,
    bytes_max: usize,
) -> rustix::io::Result<usize> {
    let mut room = bytes_max;
    let fitting = slices.iter().take(SLICES_MAX).take_while(|slice| {
        let fits = slice.len() <= room;
        room = room.saturating_sub(slice.len());
        fits
    });
    match fitting.count() {
        0 => pwrite(file, &slices[0][..bytes_max], offset),
        1 => pwrite(file, &slices[0], offset),
        count => pwritev(file, &slices[..count], offset),
    }
}

/// Says what is at a path.
///
/// # Errors
/// As [`FileDevice::open`].
pub fn probe(path: &Path) -> Result<DiskInfo> {
    FileDevice::open(path, Access::ReadOnly).map(|device| device.info())
}

/// Whether two paths name one disk: by links, or a loop device over the same file.
///
/// # Errors
/// As [`probe`].
pub fn is_same_disk(a: &Path, b: &Path) -> Result<bool> {
    Ok(backing_identity(a)? == backing_identity(b)?)
}

/// The identity of a disk, of the file below it when it is a loop device.
fn backing_identity(path: &Path) -> Result<(u64, u64)> {
    let info = probe(path)?;
    let backing = loop_backing_file(path).filter(|_| info.is_block_device);
    match backing.and_then(|file| probe(&file).ok()) {
        Some(below) => Ok(below.identity),
        None => Ok(info.identity),
    }
}

fn loop_backing_file(path: &Path) -> Option<PathBuf> {
    let name = std::fs::canonicalize(path).ok()?.file_name()?.to_owned();
    let entry = Path::new("/sys/block").join(name).join("loop/backing_file");
    std::fs::read_to_string(entry).ok().map(|text| PathBuf::from(text.trim_end()))
}

fn refuse_other_kinds(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(|e| DiskError::open(path, e))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(DiskError::NotADisk(Place::whole(path)))
}

fn info_of(path: &Path, file: &File) -> Result<DiskInfo> {
    let metadata = file.metadata().map_err(|e| DiskError::open(path, e))?;
    let is_block_device = metadata.file_type().is_block_device();
    let size_bytes = seek(file, SeekFrom::End(0)).map_err(|e| DiskError::open(path, e.into()))?;
    if size_bytes == 0 {
        return Err(DiskError::Empty(Place::whole(path)));
    }
    if !size_bytes.is_multiple_of(512) {
        return Err(DiskError::SizeUnaligned(Place::whole(path)));
    }
    let allocated_bytes = if is_block_device { size_bytes } else { metadata.blocks() * 512 };
    let sector_size_bytes = if is_block_device { logical_block_size(file) } else { 512 };
    let identity =
        if is_block_device { (u64::MAX, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
    Ok(DiskInfo { size_bytes, sector_size_bytes, allocated_bytes, is_block_device, identity })
}

fn logical_block_size(device: &File) -> u32 {
    rustix::fs::ioctl_blksszget(device).unwrap_or(512)
}

fn lock_image(path: &Path, file: &File) -> Result<()> {
    // SAFETY: an all-zero `flock` is a valid value of this plain C struct.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as i16;
    range.l_whence = libc::SEEK_SET as i16;
    range.l_start = QEMU_LOCK_START;
    // SAFETY: the descriptor is open for the whole call, and `range` is a valid struct that the call only reads.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) };
    if answer == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            Err(DiskError::Busy(Place::whole(path), "another process holds the image's lock".into()))
        }
        _ => Err(DiskError::open(path, error)),
    }
}
