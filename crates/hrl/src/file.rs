//! The file below a log: positional reads and writes, nothing else.
//!
//! The room does all its I/O through [`LogFile`], so that tests can fail a write, fill the disk, or lose what was
//! not synced (see [`crate::faults`]; the rules for real files are asked here).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{HrlError, Result};
use crate::faults::rules::{FileOperation, Stopped, permit, permitted};

/// Most slices one `pwritev` takes (IOV_MAX of Linux).
const SLICES_MAX: usize = 1024;

/// A file with positional I/O. Implementations loop over short reads and writes.
pub trait LogFile: Send + Sync {
    /// The name shown in errors.
    fn path(&self) -> &Path;

    /// Writes all slices one behind the other, beginning at `offset`. On an error any part may be written.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable (fdatasync). A failed sync must not be retried.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_size_bytes(&self, size_bytes: u64) -> io::Result<()>;

    /// The present size.
    ///
    /// # Errors
    /// What the operating system says.
    fn size_bytes(&self) -> io::Result<u64>;
}

impl<F: LogFile + ?Sized> LogFile for Arc<F> {
    fn path(&self) -> &Path {
        (**self).path()
    }
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        (**self).write_all_at(slices, offset)
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }
    fn set_size_bytes(&self, size_bytes: u64) -> io::Result<()> {
        (**self).set_size_bytes(size_bytes)
    }
    fn size_bytes(&self) -> io::Result<u64> {
        (**self).size_bytes()
    }
}

/// A log file in a file system.
#[derive(Debug)]
pub struct FsLogFile {
    file: File,
    path: PathBuf,
}

impl FsLogFile {
    /// Creates a file that must not exist yet. The caller syncs the folder ([`sync_folder`]).
    ///
    /// # Errors
    /// LOG_WRITE_FAILED.
    pub fn create_new(path: &Path) -> Result<Self> {
        let opened = permit(path, FileOperation::Open)
            .and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).open(path));
        let file = opened.map_err(|e| HrlError::write(path, 0, "create", e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// LOG_READ_FAILED.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, true)
    }

    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// LOG_READ_FAILED.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        Self::open_with(path, false)
    }

    fn open_with(path: &Path, write: bool) -> Result<Self> {
        let opened = permit(path, FileOperation::Open)
            .and_then(|()| OpenOptions::new().read(true).write(write).open(path));
        let file = opened.map_err(|e| HrlError::read(path, 0, "open", e))?;
        let metadata = file.metadata().map_err(|e| HrlError::read(path, 0, "stat", e))?;
        if !metadata.is_file() {
            let e = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(HrlError::read(path, 0, "open", e));
        }
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// What a rule lets pass of a write reaches the file: on a real disk the part before the failure does, too.
    fn write_part(&self, slices: &[IoSlice<'_>], offset: u64, stopped: Stopped) -> io::Error {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let part = &bytes[..bytes.len().min(stopped.permitted_bytes as usize)];
        FileExt::write_all_at(&self.file, part, offset).err().unwrap_or(stopped.error)
    }
}

impl LogFile for FsLogFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn write_all_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        match permitted(&self.path, FileOperation::Write, offset, length) {
            Ok(()) => write_slices(&self.file, slices, offset),
            Err(stopped) => Err(self.write_part(slices, offset, stopped)),
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        permitted(&self.path, FileOperation::Read, offset, buffer.len() as u64)
            .map_err(|stopped| stopped.error)?;
        FileExt::read_exact_at(&self.file, buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        permit(&self.path, FileOperation::Sync)?;
        self.file.sync_data()
    }

    fn set_size_bytes(&self, size_bytes: u64) -> io::Result<()> {
        permit(&self.path, FileOperation::Truncate)?;
        self.file.set_len(size_bytes)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// Writes slices one behind the other, over short writes.
fn write_slices(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0); // drops leading empty slices, so that 0 written means "no progress"
    while !slices.is_empty() {
        let now = slices.len().min(SLICES_MAX);
        match rustix::io::pwritev(file, &slices[..now], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Makes the names in a folder durable, after files were created, renamed or deleted in it.
///
/// # Errors
/// LOG_WRITE_FAILED.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let synced =
        permit(folder, FileOperation::Sync).and_then(|()| File::open(folder)).and_then(|f| f.sync_all());
    synced.map_err(|e| HrlError::write(folder, 0, "sync the folder", e))
}

/// The index that lies beside a log: the same name with the extension `hrx`.
pub fn index_path(log: &Path) -> PathBuf {
    log.with_extension("hrx")
}
