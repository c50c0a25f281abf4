//! Folder locks: `flock` on an open file, held until it is given back or the process ends.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use napi_derive::napi;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::Map;

use crate::error::{Result, failure};

static LOCKS: LazyLock<Mutex<HashMap<u32, File>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Locks the file at `path`, which is created, for this open file alone. Returns the number of the lock; 0 when somebody
/// else has it.
#[napi(catch_unwind)]
pub fn lock_file(path: String) -> Result<u32> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
    let file = opened.map_err(|error| io_failed("open", &path, &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            LOCKS.lock().insert(number, file);
            Ok(number)
        }
        Err(Errno::WOULDBLOCK) => Ok(0),
        Err(errno) => Err(io_failed("lock", &path, &errno.into())),
    }
}

/// Gives a lock back; giving it back twice does nothing.
#[napi(catch_unwind)]
pub fn unlock_file(number: u32) {
    LOCKS.lock().remove(&number);
}

fn io_failed(operation: &str, path: &str, error: &std::io::Error) -> napi::Error<crate::error::Code> {
    let code = match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => "ACCESS_DENIED",
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => "PATH_NOT_FOUND",
        _ => "IO_FAILED",
    };
    let mut details = Map::new();
    details.insert("path".into(), path.into());
    details.insert("operation".into(), operation.into());
    failure(code, &format!("cannot {operation} {path}: {error}"), "", details)
}
