//! An NBD server over any [`BlockDevice`](secondsite_disk::BlockDevice).
#![forbid(unsafe_code)]

mod codec;
