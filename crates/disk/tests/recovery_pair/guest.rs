//! A disk that guests write to while it is tracked, with a death of the process or a loss of power between any two steps and
//! inside of them, and what each of its sectors may hold then.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::recovery_common::replica::{Trouble, assert_shows};
use crate::recovery_common::{Change, Random, Versions, bytes_of, fill};
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, FlushMode, Mode, TrackOptions, TrackedDisk};
use secondsite_hrl::{LogId, index_path};

struct Died;

/// What a step came to whose process died in it.
pub const DEAD: Option<()> = None;

pub struct Guest {
    trouble: Trouble,
    mode: FlushMode,
    files: Arc<MemoryTrackFiles>,
    tracked: Option<Arc<TrackedDisk>>,
    boot: u64,
    /// Steps inside of the core until the process dies; negative for never.
    left: Arc<AtomicI64>,
    /// What the disk holds.
    pub now: Vec<u8>,
    /// What its sectors may hold after a loss of power.
    since_flush: Versions,
    /// The change that the process died in.
    torn: Option<Change>,
}

impl Guest {
    /// Over a disk that holds this durably, and was never tracked.
    pub fn new(content: &[u8], trouble: Trouble, mode: FlushMode) -> Self {
        Self {
            trouble,
            mode,
            files: Arc::new(MemoryTrackFiles::new()),
            tracked: None,
            boot: 1,
            left: Arc::new(AtomicI64::new(-1)),
            now: content.to_vec(),
            since_flush: Versions::flushed(content),
            torn: None,
        }
    }

    pub fn disk(&self) -> &Arc<TrackedDisk> {
        self.tracked.as_ref().expect("a disk that is tracked")
    }

    fn options(&self) -> TrackOptions {
        static TIME: AtomicU64 = AtomicU64::new(1_700_000_000_000_000_000);
        let left = self.left.clone();
        let options = TrackOptions::new(
            PathBuf::from("/track"),
            [9; 16],
            self.boot.to_string(),
            Arc::new(|| TIME.fetch_add(1_000_003, Ordering::Relaxed)),
            Arc::new(fill),
        );
        TrackOptions {
            flush_mode: self.mode,
            files: self.files.clone(),
            steps: Some(Arc::new(move |_| {
                if left.fetch_sub(1, Ordering::Relaxed) == 0 {
                    resume_unwind(Box::new(Died));
                }
            })),
            ..options
        }
    }

    /// Tracks the disk from here on, which holds what it must.
    pub fn open(&mut self, device: Arc<dyn BlockDevice>) {
        let (tracked, _) = TrackedDisk::open(device, self.options()).expect("the disk opens");
        let found = bytes_of(&*tracked);
        let mut may_hold = match self.trouble {
            Trouble::Death => Versions::flushed(&self.now),
            Trouble::PowerLoss => self.since_flush.clone(),
        };
        if let Some(torn) = self.torn.take() {
            may_hold.note(&torn);
        }
        may_hold.assert_holds(&found, "the disk that is opened again");
        if self.trouble == Trouble::PowerLoss {
            self.since_flush = Versions::flushed(&found); // An open after a loss of power flushes.
        }
        self.now = found;
        self.tracked = Some(tracked);
    }

    /// Does something to the disk; `None` when the process died in it. Whoever calls it then sees to the device and opens
    /// it again.
    pub fn run<T>(&mut self, random: &mut Random, step: impl FnOnce(&Arc<TrackedDisk>) -> T) -> Option<T> {
        let left = if random.one_in(8) { random.below(10) as i64 } else { -1 };
        self.left.store(left, Ordering::Relaxed);
        let done = catch_unwind(AssertUnwindSafe(|| step(self.disk())));
        self.left.store(-1, Ordering::Relaxed);
        match done {
            Ok(value) => Some(value),
            Err(death) if death.is::<Died>() => {
                self.die(random);
                None
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// The process ends, or the power goes with all that was not synced.
    pub fn die(&mut self, random: &mut Random) {
        self.tracked = None;
        if self.trouble == Trouble::PowerLoss {
            self.files = Arc::new(self.files.lose_power(random.below(1 << 30)));
            self.boot += 1;
        }
    }

    /// A guest changes the disk.
    pub fn write(&mut self, sector_count: u64, random: &mut Random) -> Option<()> {
        let change = Change::any(random, sector_count, 70);
        self.since_flush.note(&change);
        self.torn = Some(change);
        self.run(random, |disk| change.carry_out(&**disk).expect("guests are not refused"))?;
        self.torn = None;
        change.apply(&mut self.now);
        assert_shows(&**self.disk(), &self.now, "the disk of the guest");
        Some(())
    }

    pub fn flush(&mut self, random: &mut Random) -> Option<()> {
        self.run(random, |disk| disk.flush().expect("a flush"))?;
        self.since_flush = Versions::flushed(&self.now);
        Some(())
    }

    /// Closes it in order.
    pub fn close(&mut self, random: &mut Random) -> Option<()> {
        self.run(random, |disk| disk.close().expect("it closes"))?;
        self.tracked = None;
        self.since_flush = Versions::flushed(&self.now);
        Some(())
    }

    /// Whether more than logs has to be sent.
    pub fn owes_resync(&self) -> bool {
        let status = self.disk().status();
        status.resync_reason.is_some() || status.mode == Mode::Map || status.changed_bytes > 0
    }

    pub fn dirty(&self) -> Vec<(u64, u64)> {
        self.disk().dirty(0, u64::MAX)
    }

    /// Copies of the sealed logs that were not released, oldest first, in files of these names.
    pub fn sealed(&self, path_of: &dyn Fn(usize) -> PathBuf) -> Vec<(LogId, PathBuf)> {
        let logs = self.disk().unreleased_logs();
        let copies =
            logs.iter().enumerate().map(|(n, log)| (log.sealed.id, self.copy(&log.path, path_of(n))));
        copies.collect()
    }

    fn copy(&self, from: &Path, to: PathBuf) -> PathBuf {
        let content = |path: &Path| self.files.file(path).map(|file| file.content()).expect("a log");
        std::fs::write(&to, content(from)).expect("a copy");
        std::fs::write(index_path(&to), content(&index_path(from))).expect("a copy");
        to
    }
}
