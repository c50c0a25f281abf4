//! Undo: what leads an image back to older recovery points.
//!
//! The image of a replica stands at the newest applied point. Before a cycle overwrites a range of it for the first time
//! since point k, the old content goes into a *segment* of point k, an ordinary sealed log. So all segments of point k hold
//! what stood at k in every range overwritten between k and the next point, each range once. What stood at k anywhere is
//! then the oldest entry in the segments of k and later, else the image. See `docs/spec/undo.md` for the folder.
//!
//! | file | what |
//! |---|---|
//! | `name` | names of segments: they carry the point and the run of saves, so listing the folder is the index |
//! | `epoch` | the counter by which readers learn that the folder changed under them |
//! | `folder` | a consistent list of the segments; putting one in place; leftovers of a crash |
//! | `segment` | a segment open for reading: entries by offset, in the index on disk |
//! | `ranges` | ranges of logs, and what of them is not saved yet |
//! | `save` | the step before every apply |
//! | `merge` | expiry: a point into the one before it, segments of a point into one, the oldest points away |
//! | `pins` | points that somebody reads |
//! | `summary` | what a folder holds, and what in it is damaged |
//!
//! The pairs of operations on one folder, of any two processes:
//!
//! | | save | merge, compact, drop | read |
//! |---|---|---|---|
//! | save | one at a time (`save.lock`) | touch different files; the epoch is changed under its own lock | the epoch moves before the image is written, and a reader that sees it move looks again |
//! | merge, compact, drop | | one at a time (`merge.lock`) | merged entries stand in place before the old files go; open files stay readable; pinned points are refused |
//! | read | | | nothing is changed by reading |

mod epoch;
mod folder;
mod merge;
mod name;
mod pins;
mod ranges;
mod save;
mod segment;
mod summary;

pub use merge::{MergeReport, compact_point, drop_points_before, merge_point};
pub use pins::pinned_points;
pub use save::{SaveReport, UndoOptions, save_undo, save_undo_ranges};
pub use summary::{UndoDamage, UndoPoint, UndoSummary, undo_summary};

pub(crate) use epoch::Epoch;
pub(crate) use folder::UndoFolder;
pub(crate) use pins::Pin;
pub(crate) use segment::{Lookup, Segment};
