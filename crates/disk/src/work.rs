//! Long work as another thread sees it.

use std::sync::atomic::{AtomicBool, AtomicU64};

/// How far a long work is, and the way to end it.
#[derive(Debug, Default)]
pub struct Work {
    /// Bytes of the disk that are done; what had not to be copied counts.
    pub done_bytes: AtomicU64,
    /// Bytes that were copied.
    pub copied_bytes: AtomicU64,
    /// Ends the work with ABORTED.
    pub stop: AtomicBool,
}
