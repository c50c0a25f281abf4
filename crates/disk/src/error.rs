//! Everything that can go wrong with a disk, one stable code each.

use std::io;
use std::path::{Path, PathBuf};

use secondsite_hrl::{HrlError, Place as FilePlace};

/// The result of an operation on a disk.
pub type Result<T> = std::result::Result<T, DiskError>;

/// A range of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The disk or file concerned.
    pub path: PathBuf,
    /// Byte offset.
    pub offset: u64,
    /// Length in bytes; 0 when the whole disk is meant.
    pub length_bytes: u64,
}

impl Place {
    /// A range of a disk.
    pub fn new(path: &Path, offset: u64, length_bytes: u64) -> Self {
        Self { path: path.to_path_buf(), offset, length_bytes }
    }

    /// The whole disk.
    pub fn whole(path: &Path) -> Self {
        Self::new(path, 0, 0)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.length_bytes == 0 {
            return write!(f, "{}", self.path.display());
        }
        write!(f, "{} at offset {}, {} bytes", self.path.display(), self.offset, self.length_bytes)
    }
}

/// An error of the disk room.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is nothing at this path.
    #[error("no such disk: {0}")]
    NotFound(Place),
    /// A directory, socket or other thing that is no disk.
    #[error("neither a file nor a block device: {0}")]
    NotADisk(Place),
    /// The image has no bytes.
    #[error("the disk is empty: {0}")]
    Empty(Place),
    /// The operating system does not let us open it.
    #[error("access denied: {0}")]
    AccessDenied(Place, #[source] io::Error),
    /// The size is not a multiple of 512 bytes.
    #[error("the size is not a multiple of 512 bytes: {0}")]
    SizeUnaligned(Place),
    /// Two disks that must be of one size are not.
    #[error("sizes differ: {0}: {1}")]
    SizeDiffers(Place, String),
    /// Source and replica are the same file or device.
    #[error("both are the same disk: {0}")]
    SameDisk(Place),
    /// A range that does not lie inside the disk, or is not aligned to its sectors.
    #[error("outside of the disk or not aligned to its sectors: {0}")]
    OutOfRange(Place),
    /// Somebody else has the disk open.
    #[error("in use: {0}: {1}")]
    Busy(Place, String),
    /// The disk was opened for reading only.
    #[error("read-only: {0}")]
    ReadOnly(Place),
    /// A read failed.
    #[error("read failed: {0}: {1}")]
    ReadFailed(Place, #[source] io::Error),
    /// A write failed.
    #[error("write failed: {0}: {1}")]
    WriteFailed(Place, #[source] io::Error),
    /// There is no space left for a write.
    #[error("no space left: {0}")]
    Full(Place),
    /// A sync failed once; nothing written before it can be trusted to be durable.
    #[error("sync failed: {0}")]
    SyncFailed(Place),
    /// The operation was stopped.
    #[error("stopped: {0}")]
    Stopped(Place),
    /// The request itself makes no sense.
    #[error("invalid request: {0}: {1}")]
    InvalidRequest(Place, String),
    /// A file that leads back to an older recovery point is damaged or missing.
    #[error("the undo is damaged: {0}")]
    UndoDamaged(FilePlace),
    /// The map of an overlay is damaged.
    #[error("the overlay is damaged: {0}")]
    OverlayDamaged(FilePlace),
    /// A log is not as it must be.
    #[error(transparent)]
    Log(#[from] HrlError),
}

impl DiskError {
    /// The stable code, as listed in `docs/errors.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "DISK_NOT_FOUND",
            Self::NotADisk(_) => "DISK_NOT_A_DISK",
            Self::Empty(_) => "DISK_EMPTY",
            Self::AccessDenied(..) => "ACCESS_DENIED",
            Self::SizeUnaligned(_) => "DISK_SIZE_UNALIGNED",
            Self::SizeDiffers(..) => "DISK_SIZE_DIFFERS",
            Self::SameDisk(_) => "DISK_SAME",
            Self::OutOfRange(_) => "DISK_OUT_OF_RANGE",
            Self::Busy(..) => "DISK_IN_USE",
            Self::ReadOnly(_) => "DISK_READ_ONLY",
            Self::ReadFailed(..) => "DISK_READ_FAILED",
            Self::WriteFailed(..) => "DISK_WRITE_FAILED",
            Self::Full(_) => "DISK_FULL",
            Self::SyncFailed(_) => "DISK_SYNC_FAILED",
            Self::Stopped(_) => "ABORTED",
            Self::InvalidRequest(..) => "OPTION_OUT_OF_RANGE",
            Self::UndoDamaged(_) => "UNDO_DAMAGED",
            Self::OverlayDamaged(_) => "OVERLAY_DAMAGED",
            Self::Log(error) => error.code(),
        }
    }

    /// The range concerned; `None` for logs, undo and overlays, which have their own place.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::NotFound(p)
            | Self::NotADisk(p)
            | Self::Empty(p)
            | Self::AccessDenied(p, _)
            | Self::SizeUnaligned(p)
            | Self::SizeDiffers(p, _)
            | Self::SameDisk(p)
            | Self::OutOfRange(p)
            | Self::Busy(p, _)
            | Self::ReadOnly(p)
            | Self::ReadFailed(p, _)
            | Self::WriteFailed(p, _)
            | Self::Full(p)
            | Self::SyncFailed(p)
            | Self::Stopped(p)
            | Self::InvalidRequest(p, _) => Some(p),
            Self::UndoDamaged(_) | Self::OverlayDamaged(_) | Self::Log(_) => None,
        }
    }

    /// What opening `path` said.
    pub fn open(path: &Path, error: io::Error) -> Self {
        let place = Place::whole(path);
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound(place),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::AccessDenied(place, error)
            }
            io::ErrorKind::IsADirectory => Self::NotADisk(place),
            io::ErrorKind::ResourceBusy => Self::Busy(place, error.to_string()),
            _ => Self::ReadFailed(place, error),
        }
    }

    /// What writing to `place` said.
    pub fn write(place: Place, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(place),
            _ => Self::WriteFailed(place, error),
        }
    }
}
