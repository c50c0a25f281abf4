//! Everything that can go wrong with a log, one stable code each.
//!
//! Every error names the file, the offset in it and the reason, because the operator who reads it has to decide
//! whether to resynchronize a disk. Match on [`HrlError::code`]; texts may change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of an operation on a log.
pub type Result<T> = std::result::Result<T, HrlError>;

/// Where something is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file concerned.
    pub path: PathBuf,
    /// Byte offset in that file.
    pub offset: u64,
    /// What was found there, in words.
    pub reason: String,
}

impl Place {
    pub(crate) fn new(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), offset, reason: reason.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {}", self.path.display(), self.offset, self.reason)
    }
}

/// An error of the `.hrl` room.
#[derive(Debug, thiserror::Error)]
pub enum HrlError {
    /// The file does not begin with the cookie of [MS-HRL] 2.2.
    #[error("not an .hrl log: {0}")]
    NotHrl(Place),
    /// The log or its index is of a format version this program does not know.
    #[error("unsupported version: {0}")]
    VersionUnsupported(Place),
    /// The log header is damaged or contradicts itself.
    #[error("log header damaged: {0}")]
    HeaderCorrupt(Place),
    /// The log was not closed (EOLLocation is 0); recover it first.
    #[error("log is not sealed: {0}")]
    NotSealed(Place),
    /// The log is sealed already; it cannot be written to or recovered.
    #[error("log is sealed already: {0}")]
    AlreadySealed(Place),
    /// Bytes that were once good are not any more.
    #[error("log damaged: {0}")]
    Corrupt(Place),
    /// The last entry is incomplete, as a crash leaves it; recovery cuts it.
    #[error("log has a torn tail: {0}")]
    TornTail(Place),
    /// The index file that this operation needs is not there.
    #[error("index is missing: {0}")]
    IndexMissing(Place),
    /// The index belongs to another log, or disagrees with this one.
    #[error("index does not match its log: {0}")]
    IndexMismatch(Place),
    /// A log between two others is missing.
    #[error("chain has a gap: {0}")]
    ChainGap(Place),
    /// Two logs claim the same predecessor, or a log comes twice.
    #[error("chain forks: {0}")]
    ChainFork(Place),
    /// An entry reaches past the end of the disk.
    #[error("entry is outside of the disk: {0}")]
    EntryOutOfRange(Place),
    /// An offset or length that is not a multiple of 512 bytes.
    #[error("not aligned to 512 bytes: {0}")]
    Unaligned(Place),
    /// The request itself makes no sense (empty entry, length of the data differs).
    #[error("invalid request: {0}")]
    InvalidRequest(Place),
    /// The file changed while it was read.
    #[error("log changed while it was read: {0}")]
    ChangedWhileRead(Place),
    /// More entries or blocks than this operation holds in memory.
    #[error("limit exceeded: {0}")]
    LimitExceeded(Place),
    /// An earlier write failed; the log ends at its last good entry and takes no more.
    #[error("log takes no more entries after a failed write: {0}")]
    WriterFailed(Place),
    /// The operating system refused a write, a sync or a change of size.
    #[error("log write failed: {0}")]
    WriteFailed(Place, #[source] io::Error),
    /// The operating system refused a read or an open.
    #[error("log read failed: {0}")]
    ReadFailed(Place, #[source] io::Error),
}

impl HrlError {
    /// The stable code, as listed in `docs/errors.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotHrl(_) => "LOG_NOT_HRL",
            Self::VersionUnsupported(_) => "LOG_VERSION_UNSUPPORTED",
            Self::HeaderCorrupt(_) => "LOG_HEADER_CORRUPT",
            Self::NotSealed(_) => "LOG_NOT_SEALED",
            Self::AlreadySealed(_) => "LOG_ALREADY_SEALED",
            Self::Corrupt(_) => "LOG_CORRUPT",
            Self::TornTail(_) => "LOG_TORN_TAIL",
            Self::IndexMissing(_) => "LOG_INDEX_MISSING",
            Self::IndexMismatch(_) => "LOG_INDEX_MISMATCH",
            Self::ChainGap(_) => "LOG_CHAIN_GAP",
            Self::ChainFork(_) => "LOG_CHAIN_FORK",
            Self::EntryOutOfRange(_) => "LOG_ENTRY_OUT_OF_RANGE",
            Self::Unaligned(_) => "LOG_UNALIGNED",
            Self::InvalidRequest(_) => "LOG_INVALID_REQUEST",
            Self::ChangedWhileRead(_) => "LOG_CHANGED_WHILE_READ",
            Self::LimitExceeded(_) => "LOG_LIMIT_EXCEEDED",
            Self::WriterFailed(_) => "LOG_WRITER_FAILED",
            Self::WriteFailed(..) => "LOG_WRITE_FAILED",
            Self::ReadFailed(..) => "LOG_READ_FAILED",
        }
    }

    /// File, offset and reason.
    pub fn place(&self) -> &Place {
        match self {
            Self::NotHrl(p)
            | Self::VersionUnsupported(p)
            | Self::HeaderCorrupt(p)
            | Self::NotSealed(p)
            | Self::AlreadySealed(p)
            | Self::Corrupt(p)
            | Self::TornTail(p)
            | Self::IndexMissing(p)
            | Self::IndexMismatch(p)
            | Self::ChainGap(p)
            | Self::ChainFork(p)
            | Self::EntryOutOfRange(p)
            | Self::Unaligned(p)
            | Self::InvalidRequest(p)
            | Self::ChangedWhileRead(p)
            | Self::LimitExceeded(p)
            | Self::WriterFailed(p)
            | Self::WriteFailed(p, _)
            | Self::ReadFailed(p, _) => p,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotHrl(_) => "check that the path names a log",
            Self::VersionUnsupported(_) => "read it with a newer version of this program",
            Self::NotSealed(_) => "open its disk once, or recover the log; then it can be read",
            Self::AlreadySealed(_) => "read it instead",
            Self::TornTail(_) => "recover the log: the incomplete entry was never acknowledged and is cut",
            Self::HeaderCorrupt(_) | Self::Corrupt(_) | Self::IndexMissing(_) | Self::IndexMismatch(_) => {
                "the log cannot be trusted: resynchronize the disk"
            }
            Self::ChainGap(_) => "bring the missing log, or resynchronize the disk",
            Self::ChainFork(_) => "two histories exist: resynchronize the disk",
            Self::EntryOutOfRange(_) => "the log belongs to a larger disk; check which disk it was made for",
            Self::Unaligned(_) | Self::InvalidRequest(_) => "correct the call",
            Self::ChangedWhileRead(_) => "something else writes this file: find it, then read again",
            Self::LimitExceeded(_) => "work on fewer logs at a time",
            Self::WriterFailed(_) => "seal the log and begin the next one",
            Self::WriteFailed(_, e) if disk_is_full(e) => "free space where the logs lie",
            Self::WriteFailed(..) | Self::ReadFailed(..) => "check the device below the log",
        }
    }

    /// Whether the write failed because no space is left (ENOSPC, EDQUOT, EFBIG).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::WriteFailed(_, e) if disk_is_full(e))
    }

    /// The number of the operating system's error, where there is one.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Self::WriteFailed(_, e) | Self::ReadFailed(_, e) => e.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn write(path: &Path, offset: u64, what: &str, source: io::Error) -> Self {
        Self::WriteFailed(Place::new(path, offset, format!("{what}: {source}")), source)
    }

    pub(crate) fn read(path: &Path, offset: u64, what: &str, source: io::Error) -> Self {
        Self::ReadFailed(Place::new(path, offset, format!("{what}: {source}")), source)
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt(Place::new(path, offset, reason))
    }
}

fn disk_is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
