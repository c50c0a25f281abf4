//! Views: a replica as it stood at a recovery point, without copying anything.
//!
//! | file | what |
//! |---|---|
//! | `point` | [`PointView`], a read-only disk |
//! | `changed` | ranges that differ between two points |
//! | `materialize` | a view, or another disk, as a file of its own |

mod changed;
mod materialize;
mod point;

pub use changed::{Latest, changed_ranges, differing_ranges};
pub use materialize::{materialize, materialize_device};
pub use point::{PointView, ViewOptions};
