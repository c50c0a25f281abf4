//! A writable disk over one that is not written to: a test failover, or a failover before it is committed.
//!
//! What is written goes to a sparse data file at its own offset, in blocks of 4 KiB; a map says what each block is. Where a
//! block is written in part, the rest of it comes from the base first. Zeros and discards are a state of the map and take no
//! space.
//!
//! | block | reads come from | a write goes to |
//! |---|---|---|
//! | absent | the base | data, and makes it present; while settling: the image |
//! | present | data | data; while settling: the image |
//! | zero | nowhere, they are zeros | as absent |
//! | settled | the image | the image |
//!
//! | file | what |
//! |---|---|
//! | `map` | the states of all blocks, in memory and on disk; why a block is never present before its data |
//! | `header` | the first block of the map's file |
//! | `lock` | ranges that writers hold |
//! | `device` | [`Overlay`] as a disk |
//! | `settle` | the overlay becomes the image, while it is used |

mod device;
mod header;
mod lock;
mod map;
mod settle;

pub use device::{Overlay, OverlayOptions, OverlayUsage};
pub use header::OverlayState;
