//! A disk in a file that becomes larger or smaller under the tracked disk, and its death before any step of that.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::OpenOptions;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{Access, BlockDevice, FileDevice, Opened, Result, TrackOptions, TrackedDisk};

use crate::tracked_common::options;

pub struct World {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    pub files: Arc<MemoryTrackFiles>,
}

impl World {
    pub fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.raw");
        drop(FileDevice::create(&path, size_bytes).unwrap());
        Self { _folder: folder, path, files: Arc::new(MemoryTrackFiles::new()) }
    }

    /// Growth is accepted, a shrink is not.
    pub fn options(&self, boot: &str, seed: u64) -> TrackOptions {
        TrackOptions { is_growth_accepted: true, ..options(&self.files, boot, seed) }
    }

    pub fn open(&self, options: TrackOptions) -> Result<(Arc<TrackedDisk>, Opened)> {
        TrackedDisk::open(Arc::new(FileDevice::open(&self.path, Access::ReadWrite).unwrap()), options)
    }

    pub fn resize(&self, size_bytes: u64) {
        OpenOptions::new().write(true).open(&self.path).unwrap().set_len(size_bytes).unwrap();
    }
}

/// How a life ended.
pub struct End {
    pub is_power_loss: bool,
    /// The step before which it ended.
    pub fatal: u64,
    /// What the life had set when it did.
    pub acknowledged: u64,
}

struct Died;

/// Lives `live` again and again, each life with its end one step later, by death and by power loss, until one comes through.
/// Each time the disk is opened with `reopen` and given to `check`; it can be written to, and no unfinished file is left.
pub fn end_before_every_step(
    size_bytes: u64,
    live: impl Fn(&World, TrackOptions, &AtomicU64),
    reopen: impl Fn(&World, &str, u64) -> TrackOptions,
    check: impl Fn(&World, &Arc<TrackedDisk>, &End),
) {
    for is_power_loss in [false, true] {
        for fatal in 0.. {
            let mut world = World::new(size_bytes);
            let acknowledged = AtomicU64::new(0);
            let is_through = is_through(|| live(&world, dying(&world, fatal), &acknowledged));
            if is_power_loss {
                world.files = Arc::new(world.files.lose_power(fatal));
            }
            let boot = if is_power_loss { "two" } else { "one" };
            let disk = world.open(reopen(&world, boot, 100 + fatal)).unwrap().0;
            check(&world, &disk, &End { is_power_loss, fatal, acknowledged: acknowledged.into_inner() });
            disk.write_at(disk.size_bytes() - 512, &[9; 512]).unwrap();
            let mut left = world.files.paths();
            left.retain(|path| path.to_string_lossy().ends_with(".new"));
            assert!(left.is_empty(), "{left:?}");
            if is_through {
                assert!(fatal > 10, "only {fatal} steps");
                break;
            }
        }
    }
}

fn dying(world: &World, fatal: u64) -> TrackOptions {
    let count = AtomicU64::new(0);
    let mut options = world.options("one", 1);
    options.steps = Some(Arc::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == fatal {
            resume_unwind(Box::new(Died));
        }
    }));
    options
}

fn is_through(life: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(life)) {
        Ok(()) => true,
        Err(end) if end.is::<Died>() => false,
        Err(end) => resume_unwind(end),
    }
}
