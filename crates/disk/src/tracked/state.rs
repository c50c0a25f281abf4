//! The words a tracked disk says about itself.

use std::path::PathBuf;

use secondsite_hrl::SealedLog;

/// Where writes are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every write is in a log.
    Logging,
    /// The changed map takes the place of the log, until a resynchronization begins.
    Map,
}

impl Mode {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logging => "logging",
            Self::Map => "map",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Logging => 1,
            Self::Map => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Logging, Self::Map].into_iter().find(|mode| mode.code() == code)
    }
}

/// Why a resynchronization is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResyncReason {
    /// The disk changed while nobody tracked it.
    DiskModifiedOffline,
    /// A log could not be written.
    LogWriteFailed,
    /// There was no space for a log.
    LogDiskFull,
    /// Unsent logs passed their threshold.
    LogThreshold,
    /// A log or the tracking file is damaged.
    LogDamaged,
    /// The machine lost power; the active regions are compared.
    PowerLoss,
    /// A logged write failed on the disk: the log says more than the disk.
    DiskWriteFailed,
    /// A log of the chain is missing.
    ChainBroken,
    /// The replica was changed by somebody else.
    ReplicaChanged,
    /// Somebody asked.
    AskedFor,
    /// The replica has become the primary: both sides may have what the other has not.
    ReplicationReversed,
}

impl ResyncReason {
    const ALL: [Self; 11] = [
        Self::DiskModifiedOffline,
        Self::LogWriteFailed,
        Self::LogDiskFull,
        Self::LogThreshold,
        Self::LogDamaged,
        Self::PowerLoss,
        Self::DiskWriteFailed,
        Self::ChainBroken,
        Self::ReplicaChanged,
        Self::AskedFor,
        Self::ReplicationReversed,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskModifiedOffline => "DISK_MODIFIED_OFFLINE",
            Self::LogWriteFailed => "LOG_WRITE_FAILED",
            Self::LogDiskFull => "LOG_DISK_FULL",
            Self::LogThreshold => "LOG_THRESHOLD",
            Self::LogDamaged => "LOG_DAMAGED",
            Self::PowerLoss => "POWER_LOSS",
            Self::DiskWriteFailed => "DISK_WRITE_FAILED",
            Self::ChainBroken => "CHAIN_BROKEN",
            Self::ReplicaChanged => "REPLICA_CHANGED",
            Self::AskedFor => "ASKED_FOR",
            Self::ReplicationReversed => "REPLICATION_REVERSED",
        }
    }

    /// The reason of a stable name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    pub(crate) fn code(self) -> u8 {
        Self::ALL.iter().position(|reason| *reason == self).map_or(0, |n| n as u8 + 1)
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// How a disk was left when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Never tracked before.
    Created,
    /// Closed in order.
    Clean,
    /// The process died.
    ProcessDeath,
    /// The machine lost power or was restarted without a close.
    PowerLoss,
}

/// What opening found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// How the disk was left.
    pub recovery: Recovery,
    /// Bytes redone from logs onto the disk.
    pub redone_bytes: u64,
}

/// A sealed log that was not released yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedLog {
    /// The `.hrl`; its index lies beside it.
    pub path: PathBuf,
    /// What it holds.
    pub sealed: SealedLog,
    /// Unix nanoseconds of the cut that ended it; whole seconds after a restart.
    pub cut_time_ns: u64,
}

/// Counters of a tracked disk, one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackedStatus {
    /// Where writes are remembered.
    pub mode: Mode,
    /// Why a resynchronization is owed, if one is.
    pub resync_reason: Option<ResyncReason>,
    /// Nothing is known about what changed: the whole disk is a candidate.
    pub is_whole_disk_unknown: bool,
    /// Writes, zero and discard requests since the disk was opened.
    pub write_count: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Bytes of all logs with their indexes that were not released, the open one included.
    pub unreleased_log_bytes: u64,
    /// Sealed logs that were not released.
    pub unreleased_log_count: u64,
    /// Bytes of the changed map and of the candidates of a resynchronization.
    pub changed_bytes: u64,
    /// Active regions.
    pub active_region_count: u64,
    /// How long the last cut held writes.
    pub last_hold_ns: u64,
    /// How long the longest cut held writes.
    pub max_hold_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_names_and_codes_that_lead_back() {
        for (n, reason) in ResyncReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.code(), n as u8 + 1, "codes stand in files and never change");
            assert_eq!(ResyncReason::from_code(reason.code()), Some(reason));
            assert_eq!(ResyncReason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(ResyncReason::from_code(0), None);
        assert_eq!(ResyncReason::from_code(ResyncReason::ALL.len() as u8 + 1), None);
    }
}
