//! A tracked disk as an export: writes of a batch go into log and disk together, and what is dirty is known.

use std::sync::Arc;

use secondsite_disk::{BatchAction, BatchRequest, BlockDevice, Result, TrackedDisk};

use crate::export::{DirtyExtent, Export, WriteRequest};

/// A tracked disk, offered.
pub struct TrackedExport {
    disk: Arc<TrackedDisk>,
    is_read_only: bool,
    description: String,
}

impl TrackedExport {
    /// A tracked disk that clients may write to.
    pub fn new(disk: Arc<TrackedDisk>) -> Self {
        Self { disk, is_read_only: false, description: String::new() }
    }

    /// The same for reading only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// The same with a line for people, at most 4096 bytes; the rest is cut.
    #[must_use]
    pub fn with_description(self, description: &str) -> Self {
        Self { description: description.to_owned(), ..self }
    }
}

impl Export for TrackedExport {
    fn device(&self) -> &dyn BlockDevice {
        &*self.disk
    }

    fn write_batch(&self, batch: &[WriteRequest<'_>]) -> Vec<Result<()>> {
        let requests =
            batch.iter().map(|write| BatchRequest::new(write.offset, BatchAction::Write(write.data)));
        let requests: Vec<BatchRequest<'_>> = requests.collect();
        self.disk.write_batch(&requests)
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn has_dirty(&self) -> bool {
        true
    }

    fn dirty(&self, offset: u64, length_bytes: u64) -> Result<Vec<DirtyExtent>> {
        let (mut at, mut extents) = (offset, Vec::new());
        let mut push = |end: u64, is_dirty| {
            if end > at {
                extents.push(DirtyExtent { length_bytes: end - at, is_dirty });
                at = end;
            }
        };
        for (start, length) in self.disk.dirty(offset, length_bytes) {
            push(start, false);
            push(start + length, true);
        }
        push(offset + length_bytes, false);
        Ok(extents)
    }
}
