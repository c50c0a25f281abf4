//! How a disk is tracked. Everything not deterministic is a parameter.

use std::path::PathBuf;
use std::sync::Arc;

use super::files::{FsTrackFiles, LogFault, TrackFiles};

/// What a FLUSH of the guest makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushMode {
    /// Log and disk: the raw image alone is the truth, even after a power loss.
    Disk,
    /// The log alone; the disk is redone from it when it is opened after a power loss.
    Log,
}

/// Gives the time, Unix nanoseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Fills a buffer with random bytes.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;
/// Learns the name of each step.
pub type Steps = Arc<dyn Fn(&str) + Send + Sync>;

/// How to open a tracked disk.
#[derive(Clone)]
pub struct TrackOptions {
    /// Where logs and the tracking file lie; it must exist.
    pub tracking_directory: PathBuf,
    /// The disk.
    pub disk_id: [u8; 16],
    /// What a FLUSH makes durable.
    pub flush_mode: FlushMode,
    /// Boot id of the running system (`/proc/sys/kernel/random/boot_id`): another one than last time means that the
    /// page cache is lost.
    pub boot_id: String,
    /// A log with so many entries is rotated without a cut; default 1 Mi.
    pub entry_count_max: u64,
    /// A log of so many bytes is rotated without a cut; default 4 GiB.
    pub log_size_bytes_max: u64,
    /// Most regions active at once, 4 to 1228 (the default): what is compared after a power loss, in units of 4 MiB.
    pub active_region_count_max: usize,
    /// Whether a disk that is larger than when it was tracked last is grown when it is opened. Otherwise it is refused, as
    /// is one that is smaller.
    pub is_growth_accepted: bool,
    /// Whether such a disk is opened all the same, and tracked up to the end that it had; default false.
    pub is_growth_deferred: bool,
    /// Size at which a disk is opened that is smaller than when it was tracked last; all of it is compared then. Default
    /// `None`: it is refused.
    pub accepted_shrink_bytes: Option<u64>,
    /// Whether the disk was tracked before and a replica rests on that. A tracking file that is not there any more has then
    /// been lost with all it knew, and the new one is born with that as its reason; default false.
    pub is_expected: bool,
    /// Unix nanoseconds.
    pub clock: Clock,
    /// Fills a buffer with bytes that guests cannot guess.
    pub random: Random,
    /// Fails operations on logs, for tests.
    pub log_fault: Option<LogFault>,
    /// Learns each step by name, for tests that stop there.
    pub steps: Option<Steps>,
    /// The folder of logs and tracking file.
    pub files: Arc<dyn TrackFiles>,
}

impl TrackOptions {
    /// Options with the defaults named at each field.
    pub fn new(
        tracking_directory: PathBuf,
        disk_id: [u8; 16],
        boot_id: String,
        clock: Clock,
        random: Random,
    ) -> Self {
        Self {
            tracking_directory,
            disk_id,
            flush_mode: FlushMode::Disk,
            boot_id,
            entry_count_max: 1 << 20,
            log_size_bytes_max: 4 << 30,
            active_region_count_max: super::regions::ACTIVE_REGIONS_MAX,
            is_growth_accepted: false,
            is_growth_deferred: false,
            accepted_shrink_bytes: None,
            is_expected: false,
            clock,
            random,
            log_fault: None,
            steps: None,
            files: Arc::new(FsTrackFiles),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    pub(crate) fn step(&self, name: &str) {
        if let Some(steps) = &self.steps {
            steps(name);
        }
    }
}
