//! A device that fails on command.
//!
//! A [`Fault`] waits for the n-th operation of its kind that touches its range and then fails it as often as it is told, with
//! the error the kernel would give. A write may be short: its first bytes reach the medium before the error.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{BlockDevice, Extent};
use crate::error::{DiskError, Place, Result};

/// What a device is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `write_zeroes`.
    WriteZeroes,
    /// `discard`.
    Discard,
    /// `flush`.
    Flush,
    /// `extent_at`.
    Extent,
}

const OPERATION_COUNT: usize = 6;

/// A failure to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    operation: Operation,
    range: Range<u64>,
    skip_count: u64,
    fail_count: u64,
    errno: i32,
    written_bytes: u64,
}

impl Fault {
    /// The next such operation fails, once, with EIO, and nothing is written.
    pub fn new(operation: Operation) -> Self {
        let range = 0..u64::MAX;
        Self { operation, range, skip_count: 0, fail_count: 1, errno: libc::EIO, written_bytes: 0 }
    }

    /// Only operations that touch this range count.
    #[must_use]
    pub fn inside(self, range: Range<u64>) -> Self {
        Self { range, ..self }
    }

    /// So many operations still succeed.
    #[must_use]
    pub fn after(self, skip_count: u64) -> Self {
        Self { skip_count, ..self }
    }

    /// It never stops failing.
    #[must_use]
    pub fn always(self) -> Self {
        Self { fail_count: u64::MAX, ..self }
    }

    /// It fails so often.
    #[must_use]
    pub fn times(self, fail_count: u64) -> Self {
        Self { fail_count, ..self }
    }

    /// The error number, as ENOSPC.
    #[must_use]
    pub fn errno(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// A write is short: so many bytes, down to whole sectors of 512, reach the medium.
    #[must_use]
    pub fn short(self, written_bytes: u64) -> Self {
        Self { written_bytes, ..self }
    }

    fn touches(&self, operation: Operation, offset: u64, length_bytes: u64) -> bool {
        let end = offset.saturating_add(length_bytes.max(1));
        self.operation == operation && offset < self.range.end && self.range.start < end
    }

    /// Whether the operation at hand fails; counts it.
    fn strikes(&mut self) -> bool {
        if self.skip_count > 0 {
            self.skip_count -= 1;
            return false;
        }
        let is_left = self.fail_count > 0;
        self.fail_count = self.fail_count.saturating_sub(u64::from(is_left && self.fail_count < u64::MAX));
        is_left
    }
}

/// A device over another one that fails where a [`Fault`] says.
pub struct FaultDevice {
    inner: Arc<dyn BlockDevice>,
    faults: Mutex<Vec<Fault>>,
    counts: Mutex<[u64; OPERATION_COUNT]>,
}

impl FaultDevice {
    /// Without faults it is its inner device.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, faults: Mutex::default(), counts: Mutex::default() }
    }

    /// One more failure to come.
    pub fn arm(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// No more failures.
    pub fn disarm(&self) {
        self.faults.lock().clear();
    }

    /// How often it was asked, failures included.
    pub fn count(&self, operation: Operation) -> u64 {
        self.counts.lock()[operation as usize]
    }

    /// The fault that strikes, if one does.
    fn strike(&self, operation: Operation, offset: u64, length_bytes: u64) -> Option<Fault> {
        self.counts.lock()[operation as usize] += 1;
        let mut faults = self.faults.lock();
        let mut touched = faults.iter_mut().filter(|fault| fault.touches(operation, offset, length_bytes));
        touched.find_map(|fault| fault.strikes().then(|| fault.clone()))
    }

    /// Fails as the fault says, with the error of a write.
    fn check_write(&self, operation: Operation, offset: u64, length_bytes: u64) -> Result<()> {
        match self.strike(operation, offset, length_bytes) {
            Some(fault) => Err(self.write_error(&fault, offset, length_bytes)),
            None => Ok(()),
        }
    }

    fn check_read(&self, operation: Operation, offset: u64, length_bytes: u64) -> Result<()> {
        let Some(fault) = self.strike(operation, offset, length_bytes) else { return Ok(()) };
        let error = io::Error::from_raw_os_error(fault.errno);
        Err(DiskError::ReadFailed(Place::new(self.path(), offset, length_bytes), error))
    }

    fn write_error(&self, fault: &Fault, offset: u64, length_bytes: u64) -> DiskError {
        let place = Place::new(self.path(), offset, length_bytes);
        DiskError::write(place, io::Error::from_raw_os_error(fault.errno))
    }
}

impl BlockDevice for FaultDevice {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn sector_size_bytes(&self) -> u32 {
        self.inner.sector_size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_read(Operation::Read, offset, buffer.len() as u64)?;
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let length_bytes = data.len() as u64;
        let Some(fault) = self.strike(Operation::Write, offset, length_bytes) else {
            return self.inner.write_at(offset, data);
        };
        let short = (fault.written_bytes / 512 * 512).min(length_bytes) as usize;
        if short > 0 {
            self.inner.write_at(offset, &data[..short])?;
        }
        Err(self.write_error(&fault, offset, length_bytes))
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.check_write(Operation::WriteZeroes, offset, length_bytes)?;
        self.inner.write_zeroes(offset, length_bytes, may_unmap)
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.check_write(Operation::Discard, offset, length_bytes)?;
        self.inner.discard(offset, length_bytes)
    }

    fn flush(&self) -> Result<()> {
        match self.strike(Operation::Flush, 0, u64::MAX) {
            Some(_) => Err(DiskError::SyncFailed(Place::whole(self.path()))),
            None => self.inner.flush(),
        }
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.check_read(Operation::Extent, offset, end.saturating_sub(offset))?;
        self.inner.extent_at(offset, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::MemoryDevice;

    fn pair() -> (Arc<MemoryDevice>, FaultDevice) {
        let memory = Arc::new(MemoryDevice::new("m", 8192));
        (Arc::clone(&memory), FaultDevice::new(memory))
    }

    #[test]
    fn the_third_write_fails_once() {
        let (_, disk) = pair();
        disk.arm(Fault::new(Operation::Write).after(2).errno(libc::ENOSPC));
        let codes: Vec<_> =
            (0..4).map(|_| disk.write_at(0, &[1; 512]).map_err(|error| error.code())).collect();
        assert_eq!(codes, [Ok(()), Ok(()), Err("DISK_FULL"), Ok(())]);
        assert_eq!(disk.count(Operation::Write), 4);
        disk.read_at(0, &mut [0; 512]).expect("reads are another matter");
    }

    #[test]
    fn a_bad_sector_fails_every_read_that_touches_it() {
        let (_, disk) = pair();
        disk.arm(Fault::new(Operation::Read).inside(1024..1536).always());
        let code = |offset, length| disk.read_at(offset, &mut vec![0; length]).map_err(|error| error.code());
        assert_eq!(code(0, 1024), Ok(()));
        assert_eq!(code(512, 1024), Err("DISK_READ_FAILED"));
        assert_eq!(code(1024, 512), Err("DISK_READ_FAILED"));
        assert_eq!(code(1536, 512), Ok(()));
        disk.disarm();
        disk.read_at(0, &mut [0; 8192]).expect("healed");
    }

    #[test]
    fn a_short_write_leaves_its_first_sectors() {
        let (memory, disk) = pair();
        disk.arm(Fault::new(Operation::Write).short(1500));
        let error = disk.write_at(512, &[7; 4096]).expect_err("a failure");
        assert_eq!((error.code(), error.place().map(|p| p.offset)), ("DISK_WRITE_FAILED", Some(512)));
        let mut expected = vec![0; 8192];
        expected[512..1536].fill(7);
        assert_eq!(memory.bytes(), expected);
    }

    #[test]
    fn each_kind_of_operation_fails_by_its_own_name() {
        let (_, disk) = pair();
        for operation in [Operation::WriteZeroes, Operation::Discard, Operation::Flush, Operation::Extent] {
            disk.arm(Fault::new(operation));
        }
        assert_eq!(disk.write_zeroes(0, 512, false).map_err(|e| e.code()), Err("DISK_WRITE_FAILED"));
        assert_eq!(disk.discard(0, 512).map_err(|e| e.code()), Err("DISK_WRITE_FAILED"));
        assert_eq!(disk.flush().map_err(|e| e.code()), Err("DISK_SYNC_FAILED"));
        assert_eq!(disk.extent_at(0, 512).map_err(|e| e.code()), Err("DISK_READ_FAILED"));
        disk.flush().expect("every fault has struck");
    }
}
