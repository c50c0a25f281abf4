//! Disks: the [`BlockDevice`] trait, the layers that implement it, and the batch work over whole disks.

mod activity;
mod apply;
mod batch;
mod churn;
mod device;
mod digest;
mod error;
pub mod faults;
mod file;
mod overlay;
mod sync;
pub mod tracked;
mod undo;
mod view;
mod work;

pub use activity::{ActivityWindow, FoundEntry, IntervalActivity, LogActivity, find_entry, log_activity};
pub use apply::{ApplyReport, Until, apply_logs, apply_logs_until};
pub use batch::build_batch;
pub use churn::{Churn, measure_churn};
pub use device::{BlockDevice, Extent, ExtentKind, check_range, extents};
pub use digest::{CHUNK_BYTES_MAX, DIGEST_BYTES, DigestAlgorithm, chunk_count, digest_ranges};
pub use error::{DiskError, Place, Result};
pub use file::{Access, DiskInfo, FileDevice, is_same_disk, probe};
pub use overlay::{Overlay, OverlayOptions, OverlayState, OverlayUsage};
pub use sync::{DigestChoice, PairDigests, SyncOptions, SyncReport, compare_range, sync_range};
pub use tracked::{
    BatchAction, BatchRequest, FlushMode, FsTrackFiles, LogFault, Mode, Opened, QueuedLog, Recovery,
    ResyncReason, TrackFiles, TrackOptions, TrackedDisk, TrackedStatus, cut,
};
pub use undo::{
    MergeReport, SaveReport, UndoDamage, UndoOptions, UndoPoint, UndoSummary, compact_point,
    drop_points_before, merge_point, pinned_points, save_undo, save_undo_ranges, undo_summary,
};
pub use view::{
    Latest, PointView, ViewOptions, changed_ranges, differing_ranges, materialize, materialize_device,
};
pub use work::Work;
