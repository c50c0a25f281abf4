//! N-API glue: handles, conversion, errors as data. Nothing is decided here.
//!
//! Batch work is a synchronous call on paths and ranges, made from a worker. Live disks live in a registry and are
//! named by a number, since an object of the addon belongs to one JavaScript thread.

mod disks;
mod error;
mod faults;
mod live;
mod locks;
mod logs;
mod nbd;
mod notify;
mod number;
mod overlays;
mod recovery;
mod replay;
mod sealed;
