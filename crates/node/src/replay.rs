//! Kept logs, applied forward from a recovery point.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use napi::bindgen_prelude::BigInt;
use napi_derive::napi;
use secondsite_disk::apply_logs_until as apply_until;

use crate::error::{Result, bad_argument, from_disk};
use crate::recovery::block_device;

/// Applies logs, in order, to an overlay, until the first entry that is later than `until_ns`.
#[napi(catch_unwind)]
pub fn apply_logs_until(handle: u32, logs: Vec<String>, until_ns: BigInt) -> Result<()> {
    let (is_negative, until_ns, is_exact) = until_ns.get_u64();
    if is_negative || !is_exact {
        return Err(bad_argument("untilNs", "must be Unix nanoseconds below 2^64"));
    }
    let device = block_device(handle)?;
    let paths: Vec<&Path> = logs.iter().map(Path::new).collect();
    apply_until(&*device, &paths, until_ns, &AtomicBool::new(false)).map_err(from_disk)?;
    Ok(())
}
