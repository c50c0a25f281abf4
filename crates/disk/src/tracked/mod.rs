//! The tracked disk: every write is remembered before it is carried out.
//!
//! One order lock fixes the order of everything: **activate the regions, append to the log, write the disk,
//! acknowledge**; logged steps that do not overlap reach the disk side by side. So after the death of a process the log is ahead of the disk by at most the batches in flight, which are
//! redone at the next open; after a power loss the durable log is redone and the active regions are compared.
//!
//! Trouble with a log or the tracking file never fails a write of the guest. The ranges of a log that cannot be
//! written go to the changed map, the log is given up, and the map is the record until a resynchronization begins.
//!
//! | file | what |
//! |---|---|
//! | `batch` | requests into steps, and steps into log and disk: the write path |
//! | `order`, `flights` | what the order lock guards, and who holds it how |
//! | `disk` | [`TrackedDisk`] as a block device; flush |
//! | `cut` | rotation of the logs of several disks at one instant; sealing outside of the lock |
//! | `queue` | sealed logs that wait to be released; coalescing |
//! | `dirty` | what was written since the last acknowledged cut |
//! | `resize` | a disk that has become larger, or smaller |
//! | `spares` | released logs whose files are written again |
//! | `resync` | folding logs into the map, candidates, the end of a resynchronization |
//! | `open`, `recover`, `scan`, `redo`; `close` | recovery; the clean end |
//! | `file`, `header`, `bits`, `regions` | the tracking file |
//!
//! Locks, in this order: housekeeping (one slow operation at a time), order, queue. The order lock is held over a sync
//! of the tracking file alone: when regions are activated or cleaned for room, after a flush of what no log holds, and
//! while a disk grows or shrinks; making room among regions syncs the log as well.

mod batch;
mod bits;
mod close;
mod cut;
mod dirty;
mod disk;
pub mod faults;
mod file;
mod files;
mod flights;
mod header;
mod open;
mod options;
mod order;
mod queue;
mod recover;
mod redo;
mod regions;
mod resize;
mod resync;
mod scan;
mod spares;
mod state;

pub use batch::{BatchAction, BatchRequest};
pub use cut::cut;
pub use disk::TrackedDisk;
pub use file::CHUNK_BYTES;
pub use files::{FsTrackFiles, LogFault, TrackFiles};
pub use options::{Clock, FlushMode, Random, Steps, TrackOptions};
pub use regions::{ACTIVE_REGIONS_MAX, REGION_BYTES};
pub use state::{Mode, Opened, QueuedLog, Recovery, ResyncReason, TrackedStatus};
