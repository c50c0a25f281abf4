//! Real files that fail on command: a table of rules for the whole process.
//!
//! Whoever does I/O on a file asks [`permitted`] first (log files, disks, and through the addon the engine's own files),
//! so a test lets a real write, sync or open of a real file fail, in whatever thread it happens. Without rules that is one
//! relaxed load; the order does not matter, as whoever arms a rule does so before it starts what is to fail.
//!
//! Rules are for tests. Nothing in production arms one, and nothing can from outside of the process.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most rules at a time: every operation walks all of them.
pub const RULES_MAX: usize = 64;

static ARMED: AtomicUsize = AtomicUsize::new(0);
static TABLE: Mutex<Table> = Mutex::new(Table { next: 1, rules: Vec::new() });

/// What a rule fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOperation {
    /// Opening or creating.
    Open,
    /// Reading, and asking where holes are.
    Read,
    /// Writing, zeroing and discarding.
    Write,
    /// Making durable.
    Sync,
    /// Changing the size.
    Truncate,
}

impl FileOperation {
    /// The operation of a name: `open`, `read`, `write`, `sync`, `truncate`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "open" => Self::Open,
            "read" => Self::Read,
            "write" => Self::Write,
            "sync" => Self::Sync,
            "truncate" => Self::Truncate,
            _ => return None,
        })
    }
}

/// Which operations fail, and how.
#[derive(Debug, Clone)]
pub struct FaultRule {
    path: PathBuf,
    suffix: String,
    operation: FileOperation,
    errno: i32,
    range: Range<u64>,
    calls_left: u64,
    bytes_left: u64,
    strikes_left: u64,
    strikes: u64,
}

impl FaultRule {
    /// Every such operation on the file at `path`, or on any file below the folder at `path`, fails with `errno`.
    pub fn new(path: impl Into<PathBuf>, operation: FileOperation, errno: i32) -> Self {
        Self {
            path: path.into(),
            suffix: String::new(),
            operation,
            errno,
            range: 0..u64::MAX,
            calls_left: 0,
            bytes_left: 0,
            strikes_left: u64::MAX,
            strikes: 0,
        }
    }

    /// Only files whose path ends with `suffix`.
    #[must_use]
    pub fn suffix(self, suffix: impl Into<String>) -> Self {
        Self { suffix: suffix.into(), ..self }
    }

    /// Only reads and writes that touch `range`: a bad sector.
    #[must_use]
    pub fn inside(self, range: Range<u64>) -> Self {
        Self { range, ..self }
    }

    /// Lets `calls` such operations pass first.
    #[must_use]
    pub fn after_calls(self, calls: u64) -> Self {
        Self { calls_left: calls, ..self }
    }

    /// Lets `bytes` pass first; the operation that goes beyond does its first part, as on a disk that becomes full.
    #[must_use]
    pub fn after_bytes(self, bytes: u64) -> Self {
        Self { bytes_left: bytes, ..self }
    }

    /// Fails `times` operations, then none.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { strikes_left: times, ..self }
    }

    fn concerns(&self, access: &Access<'_>) -> bool {
        let has_bytes = matches!(access.operation, FileOperation::Read | FileOperation::Write);
        let is_touched =
            access.offset < self.range.end && access.offset.saturating_add(access.length) > self.range.start;
        self.operation == access.operation
            && self.strikes_left > 0
            && access.path.starts_with(&self.path)
            && access.path.as_os_str().as_encoded_bytes().ends_with(self.suffix.as_bytes())
            && (!has_bytes || is_touched)
    }

    /// How many bytes of an access pass before it fails; `None` when all of it passes.
    fn strike(&mut self, access: &Access<'_>) -> Option<u64> {
        if self.calls_left > 0 {
            self.calls_left -= 1;
            return None;
        }
        if self.bytes_left > 0 && self.bytes_left >= access.length {
            self.bytes_left -= access.length;
            return None;
        }
        self.strikes_left -= 1;
        self.strikes += 1;
        Some(std::mem::take(&mut self.bytes_left))
    }
}

/// How far an operation may go before it fails.
#[derive(Debug)]
pub struct Stopped {
    /// Bytes that are still to be read or written.
    pub permitted_bytes: u64,
    /// What the operating system would say then.
    pub error: io::Error,
}

struct Access<'a> {
    path: &'a Path,
    operation: FileOperation,
    offset: u64,
    length: u64,
}

struct Table {
    next: u32,
    rules: Vec<(u32, FaultRule)>,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a rule into force. Returns its number; `None` when there are [`RULES_MAX`] already.
pub fn arm(rule: FaultRule) -> Option<u32> {
    let mut table = table();
    if table.rules.len() >= RULES_MAX {
        return None;
    }
    let number = table.next;
    table.next += 1;
    table.rules.push((number, rule));
    ARMED.store(table.rules.len(), Ordering::Relaxed);
    Some(number)
}

/// Takes a rule away; one that is gone does not matter. Returns how often it struck.
pub fn disarm(number: u32) -> u64 {
    let mut table = table();
    let found = table.rules.iter().position(|(own, _)| *own == number);
    let strikes = found.map_or(0, |index| table.rules.remove(index).1.strikes);
    ARMED.store(table.rules.len(), Ordering::Relaxed);
    strikes
}

/// How often a rule has struck; 0 for one that is gone.
pub fn strikes(number: u32) -> u64 {
    table().rules.iter().find(|(own, _)| *own == number).map_or(0, |(_, rule)| rule.strikes)
}

/// Whether an operation on a file may be carried out; the first rule that says no decides.
///
/// # Errors
/// [`Stopped`], with the bytes that are to be carried out before the failure.
#[inline]
pub fn permitted(path: &Path, operation: FileOperation, offset: u64, length: u64) -> Result<(), Stopped> {
    if ARMED.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    asked(&Access { path, operation, offset, length })
}

#[cold]
fn asked(access: &Access<'_>) -> Result<(), Stopped> {
    for (_, rule) in &mut table().rules {
        if !rule.concerns(access) {
            continue;
        }
        if let Some(permitted_bytes) = rule.strike(access) {
            return Err(Stopped { permitted_bytes, error: io::Error::from_raw_os_error(rule.errno) });
        }
    }
    Ok(())
}

/// [`permitted`] for an operation that has no parts.
///
/// # Errors
/// What the operating system would say.
#[inline]
pub fn permit(path: &Path, operation: FileOperation) -> io::Result<()> {
    permitted(path, operation, 0, 0).map_err(|stopped| stopped.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;

    /// A rule that ends with the test; the folder is the test's own, as the table is everybody's.
    struct Armed(u32);

    impl Armed {
        fn new(rule: FaultRule) -> Self {
            Self(arm(rule).expect("room in the table"))
        }
    }

    impl Drop for Armed {
        fn drop(&mut self) {
            disarm(self.0);
        }
    }

    fn write(path: &str, offset: u64, length: u64) -> Result<(), (u64, Option<i32>)> {
        let answer = permitted(Path::new(path), FileOperation::Write, offset, length);
        answer.map_err(|stopped| (stopped.permitted_bytes, stopped.error.raw_os_error()))
    }

    #[test]
    fn a_rule_concerns_its_file_its_folder_and_its_suffix_alone() {
        let armed = Armed::new(FaultRule::new("/rules/a", FileOperation::Write, EIO).suffix(".hrl"));
        assert_eq!(write("/rules/a/x.hrl", 0, 1), Err((0, Some(EIO))));
        assert_eq!(write("/rules/a/x.hrx", 0, 1), Ok(()));
        assert_eq!(write("/rules/ab/x.hrl", 0, 1), Ok(()), "a name that only begins the same");
        permit(Path::new("/rules/a/x.hrl"), FileOperation::Sync).expect("another operation");
        assert_eq!(strikes(armed.0), 1);
    }

    #[test]
    fn a_disk_that_becomes_full_takes_the_first_part() {
        let _armed = Armed::new(FaultRule::new("/rules/b", FileOperation::Write, ENOSPC).after_bytes(1000));
        assert_eq!(write("/rules/b", 0, 600), Ok(()));
        assert_eq!(write("/rules/b", 600, 600), Err((400, Some(ENOSPC))));
        assert_eq!(write("/rules/b", 1200, 1), Err((0, Some(ENOSPC))));
    }

    #[test]
    fn calls_pass_first_and_strikes_end() {
        let _armed =
            Armed::new(FaultRule::new("/rules/c", FileOperation::Write, EIO).after_calls(1).times(2));
        let answers: Vec<_> = (0..4).map(|_| write("/rules/c", 0, 9).is_err()).collect();
        assert_eq!(answers, [false, true, true, false]);
    }

    #[test]
    fn a_bad_sector_is_where_it_is() {
        let _armed = Armed::new(FaultRule::new("/rules/d", FileOperation::Write, EIO).inside(512..1024));
        assert_eq!(write("/rules/d", 0, 512), Ok(()));
        assert_eq!(write("/rules/d", 0, 513), Err((0, Some(EIO))));
        assert_eq!(write("/rules/d", 1024, 512), Ok(()));
    }

    #[test]
    fn a_rule_that_is_gone_fails_nothing_and_tells_how_often_it_did() {
        let number = arm(FaultRule::new("/rules/e", FileOperation::Write, EIO)).expect("room");
        assert!(write("/rules/e", 0, 1).is_err());
        assert_eq!((disarm(number), disarm(number), strikes(number)), (1, 0, 0));
        assert_eq!(write("/rules/e", 0, 1), Ok(()));
    }
}
