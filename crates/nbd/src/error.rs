//! Everything that can go wrong with a server, one stable code each. What goes wrong with a connection ends that
//! connection and is counted; it is never an error of the server.

use std::io;

use secondsite_disk::DiskError;

use crate::codec::constants::Errno;

/// The result of an operation on a server.
pub type Result<T> = std::result::Result<T, NbdError>;

/// The codes, as listed in `docs/spec/nbd.md`.
pub mod code {
    /// Somebody listens at the address.
    pub const ADDRESS_IN_USE: &str = "NBD_ADDRESS_IN_USE";
    /// The address cannot be listened at.
    pub const LISTEN_FAILED: &str = "NBD_LISTEN_FAILED";
    /// A certificate or key cannot be used.
    pub const TLS_INVALID: &str = "NBD_TLS_INVALID";
    /// Two exports of one name.
    pub const EXPORT_EXISTS: &str = "NBD_EXPORT_EXISTS";
    /// There is no export of this name.
    pub const EXPORT_NOT_FOUND: &str = "NBD_EXPORT_NOT_FOUND";
    /// A name that the protocol cannot carry.
    pub const EXPORT_NAME_INVALID: &str = "NBD_EXPORT_NAME_INVALID";
    /// A limit that no client could live with.
    pub const LIMIT_INVALID: &str = "NBD_LIMIT_INVALID";
}

/// An error of the NBD room.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// A live server listens at the address, or a file that is no socket is there.
    #[error("address in use: {0}: {1}")]
    AddressInUse(String, String),
    /// The operating system does not let us listen.
    #[error("cannot listen at {0}: {1}")]
    ListenFailed(String, #[source] io::Error),
    /// A certificate or key cannot be read, or they do not fit together.
    #[error("cannot use {0}: {1}")]
    TlsInvalid(String, String),
    /// There is an export of this name.
    #[error("an export of this name exists: {0:?}")]
    ExportExists(String),
    /// There is no export of this name.
    #[error("no export of this name: {0:?}")]
    ExportNotFound(String),
    /// A name is at most 4096 bytes without a zero byte.
    #[error("not a name of an export: {0:?}")]
    ExportNameInvalid(String),
    /// A limit out of its range.
    #[error("limit out of range: {0}: {1}")]
    LimitInvalid(&'static str, u64),
}

impl NbdError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AddressInUse(..) => code::ADDRESS_IN_USE,
            Self::ListenFailed(..) => code::LISTEN_FAILED,
            Self::TlsInvalid(..) => code::TLS_INVALID,
            Self::ExportExists(_) => code::EXPORT_EXISTS,
            Self::ExportNotFound(_) => code::EXPORT_NOT_FOUND,
            Self::ExportNameInvalid(_) => code::EXPORT_NAME_INVALID,
            Self::LimitInvalid(..) => code::LIMIT_INVALID,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::AddressInUse(..) => "Stop the server that listens there, or choose another address.",
            Self::ListenFailed(..) => {
                "Check that the folder or the address exists and may be used by this user."
            }
            Self::TlsInvalid(..) => {
                "Give PEM files: a certificate chain, its private key, and the authority of the clients."
            }
            Self::ExportExists(_) => "Choose another name, or remove the other export first.",
            Self::ExportNotFound(_) => "List the exports of the server; names are compared byte by byte.",
            Self::ExportNameInvalid(_) => "Use at most 4096 bytes of UTF-8 without a zero byte.",
            Self::LimitInvalid(..) => {
                "Leave the limit at its default, or keep to the range in its description."
            }
        }
    }
}

/// The error of the protocol for an error of a disk, and the code that is sent as its text.
pub(crate) fn errno_of(error: &DiskError) -> (Errno, &'static str) {
    let errno = match error {
        DiskError::Full(_) => Errno::NoSpace,
        DiskError::ReadOnly(_) | DiskError::AccessDenied(..) => Errno::Perm,
        DiskError::OutOfRange(_) | DiskError::InvalidRequest(..) => Errno::Invalid,
        DiskError::Stopped(_) | DiskError::Busy(..) => Errno::Shutdown,
        _ => Errno::Io,
    };
    (errno, error.code())
}
