//! What a server offers: a disk, and what it can do beyond reading and writing.

use std::sync::Arc;

use secondsite_disk::{BlockDevice, Result};

/// One write of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteRequest<'a> {
    /// First byte, a multiple of 512.
    pub offset: u64,
    /// The bytes, a multiple of 512; a view into the buffer of the connection.
    pub data: &'a [u8],
}

/// A range that was, or was not, written since the last acknowledged cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyExtent {
    /// Bytes, more than 0.
    pub length_bytes: u64,
    /// Whether it was written.
    pub is_dirty: bool,
}

/// A disk as clients see it. All methods are called from many threads at once.
pub trait Export: Send + Sync {
    /// The disk. Its size may grow while clients are connected.
    fn device(&self) -> &dyn BlockDevice;

    /// Carries out writes, one result each, in the order of the batch where they overlap.
    fn write_batch(&self, batch: &[WriteRequest<'_>]) -> Vec<Result<()>> {
        batch.iter().map(|write| self.device().write_at(write.offset, write.data)).collect()
    }

    /// Whether writes, trims and zeroes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// A line for people; empty for none.
    fn description(&self) -> String {
        String::new()
    }

    /// Whether a flush on one connection covers what was completed on all others. [`BlockDevice::flush`] promises it, so
    /// only an export that keeps something per connection says no.
    fn can_multi_connect(&self) -> bool {
        true
    }

    /// Whether `write_zeroes` is faster than writing zeros, whatever the range and its history.
    fn is_zeroing_fast(&self) -> bool {
        false
    }

    /// Whether [`dirty`](Self::dirty) knows something; then the context `secondsite:dirty` is offered.
    fn has_dirty(&self) -> bool {
        false
    }

    /// What was written since the last acknowledged cut, from `offset` on, as neighbours; the list may end early but is
    /// not empty.
    ///
    /// # Errors
    /// Those of the disk.
    fn dirty(&self, _offset: u64, length_bytes: u64) -> Result<Vec<DirtyExtent>> {
        // Not knowing is answered as "may have been written": a backup that asks copies too much, never too little.
        Ok(vec![DirtyExtent { length_bytes, is_dirty: true }])
    }
}

/// A disk offered as it is.
pub struct DeviceExport {
    device: Arc<dyn BlockDevice>,
    is_read_only: bool,
    is_zeroing_fast: bool,
    description: String,
}

impl DeviceExport {
    /// A disk that clients may write to.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, is_read_only: false, is_zeroing_fast: false, description: String::new() }
    }

    /// The same for reading only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// The same, where zeroing is known to be fast (a file system with hole punching).
    #[must_use]
    pub fn with_fast_zeroing(self) -> Self {
        Self { is_zeroing_fast: true, ..self }
    }

    /// The same with a line for people, at most 4096 bytes; the rest is cut.
    #[must_use]
    pub fn with_description(self, description: &str) -> Self {
        Self { description: description.to_owned(), ..self }
    }
}

impl Export for DeviceExport {
    fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn is_zeroing_fast(&self) -> bool {
        self.is_zeroing_fast
    }
}
