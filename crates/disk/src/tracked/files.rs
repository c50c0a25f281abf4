//! The files of a tracked disk: names, creation, and what makes a failed sync stay failed.
//!
//! All I/O of the room goes through [`TrackFiles`], so that tests fail an operation or lose what was not synced
//! ([`super::faults`]).

use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use secondsite_hrl::{FsLogFile, HrlError, LogFile, Place};

use crate::DiskError;

/// Fails an operation on a log on command: given its name (`create`, `write`, `sync`, `resize`), an error or none.
pub type LogFault = Arc<dyn Fn(&str) -> Option<io::Error> + Send + Sync>;

/// A folder of files.
pub trait TrackFiles: Send + Sync {
    /// Creates an empty file; one that is there is emptied.
    ///
    /// # Errors
    /// What the operating system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, and what the operating system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a file over another.
    ///
    /// # Errors
    /// What the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The names in a folder.
    ///
    /// # Errors
    /// What the operating system says.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Takes the lock of a file, made when it is not there, until the result is dropped; `None` when somebody has it.
    ///
    /// # Errors
    /// What the operating system says.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>>;
}

/// Files in a file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FsTrackFiles;

impl TrackFiles for FsTrackFiles {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        fs::File::create(path)?;
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file: Arc<dyn LogFile> = Arc::new(FsLogFile::open(path).map_err(io_of)?);
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        // Names that are no text are not ours.
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        fs::File::open(folder)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }
}

/// The cause of an error of a log's file, without its place.
fn io_of(error: HrlError) -> io::Error {
    match error {
        HrlError::WriteFailed(_, e) | HrlError::ReadFailed(_, e) => e,
        other => io::Error::other(other.to_string()),
    }
}

/// A file whose failed sync stays failed. The kernel reports a lost page once, to whoever asks first; with flushes
/// and seals in several threads everybody must learn of it.
pub(crate) struct TrackedFile {
    inner: Arc<dyn LogFile>,
    /// The name shown in errors, where the file was renamed.
    name: Option<PathBuf>,
    fault: Option<LogFault>,
    sync_failed: Mutex<bool>,
}

impl TrackedFile {
    pub(crate) fn new(inner: Arc<dyn LogFile>, fault: Option<LogFault>) -> Self {
        Self { inner, name: None, fault, sync_failed: Mutex::new(false) }
    }

    /// The same under the name that it is about to have.
    pub(crate) fn named(self, path: &Path) -> Self {
        Self { name: Some(path.to_path_buf()), ..self }
    }

    fn fail(&self, operation: &str) -> io::Result<()> {
        self.fault.as_ref().and_then(|fault| fault(operation)).map_or(Ok(()), Err)
    }
}

impl LogFile for TrackedFile {
    fn path(&self) -> &Path {
        self.name.as_deref().unwrap_or_else(|| self.inner.path())
    }

    fn write_all_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.fail("write")?;
        self.inner.write_all_at(slices, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock(); // Held while syncing: two syncs at once could share one error.
        if *failed {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let synced = self.fail("sync").and_then(|()| self.inner.sync_data());
        *failed = synced.is_err();
        synced
    }

    fn set_size_bytes(&self, size_bytes: u64) -> io::Result<()> {
        self.fail("resize")?;
        self.inner.set_size_bytes(size_bytes)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }
}

/// An open log or index.
pub(crate) type File = Arc<TrackedFile>;

/// The names of one disk's files.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) folder: PathBuf,
    disk: String,
}

impl Names {
    pub(crate) fn new(folder: &Path, disk: &Path) -> Self {
        let name = disk.file_name().map_or_else(|| "disk".into(), |name| name.to_string_lossy().into_owned());
        Self { folder: folder.to_path_buf(), disk: name }
    }

    /// The tracking file.
    pub(crate) fn tracking(&self) -> PathBuf {
        self.folder.join(format!("{}.hrt", self.disk))
    }

    /// The tracking file of a larger disk, until it takes the place of the old one.
    pub(crate) fn new_tracking(&self) -> PathBuf {
        self.folder.join(format!("{}.hrt.new", self.disk))
    }

    /// The n-th log.
    pub(crate) fn log(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}.{number:010}.hrl", self.disk))
    }

    /// The n-th file that waits to be written again.
    pub(crate) fn spare(&self, n: usize) -> PathBuf {
        self.folder.join(format!("{}.spare-{n}.hrl", self.disk))
    }

    /// The number of a log by its file name; `None` for files that are not ours.
    pub(crate) fn number_of(&self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(&self.disk)?.strip_prefix('.')?.strip_suffix(".hrl")?;
        let all_digits = digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| all_digits)
    }
}

/// An error of the operating system about a file of the tracking directory.
pub(crate) fn file_error(path: &Path, what: &str, error: io::Error) -> DiskError {
    let place = Place { path: path.to_path_buf(), offset: 0, reason: format!("{what}: {error}") };
    DiskError::Log(HrlError::WriteFailed(place, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_would_give_are_ours() {
        let names = Names::new(Path::new("t"), Path::new("vm/os.raw"));
        let own = names.log(42).file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(own, "os.raw.0000000042.hrl");
        assert_eq!(names.number_of(&own), Some(42));
        let foreign =
            ["os.raw.42.hrl", "os.raw.0000000042.hrx", "os.raw.+000000042.hrl", "os2.raw.0000000042.hrl"];
        foreign.iter().for_each(|name| assert_eq!(names.number_of(name), None, "{name}"));
    }
}
