//! Kept logs: applied forward from a recovery point, and looked at for what was written when.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use napi::bindgen_prelude::BigInt;
use napi_derive::napi;
use secondsite_disk::{
    Access, ActivityWindow, FileDevice, Until, apply_logs_until as apply_until, find_entry,
    log_activity as activity_of, measure_churn,
};
use secondsite_hrl::Entry;

use crate::error::{Result, bad_argument, from_disk};
use crate::logs::{NativeLogEntry, entry_of};
use crate::number::{offset, size};
use crate::recovery::block_device;

/// What is counted and listed of kept logs.
#[napi(object)]
pub struct NativeActivityWindow {
    /// Entries before and behind it are listed, Unix nanoseconds.
    pub around_ns: BigInt,
    /// Start of the first interval, Unix nanoseconds.
    pub from_ns: BigInt,
    /// Nanoseconds of an interval.
    pub interval_ns: BigInt,
    pub interval_count: u32,
    /// Entries listed on each side, at most.
    pub entries_max: u32,
}

/// What was written in one interval.
#[napi(object)]
pub struct NativeIntervalActivity {
    pub write_count: f64,
    pub write_bytes: f64,
    /// Bytes zeroed or given back.
    pub zero_bytes: f64,
}

/// What kept logs say of a window.
#[napi(object)]
pub struct NativeLogActivity {
    pub intervals: Vec<NativeIntervalActivity>,
    /// The last entries that are applied for the time asked for.
    pub before: Vec<NativeLogEntry>,
    /// The first ones that are not.
    pub after: Vec<NativeLogEntry>,
}

/// An entry found by its sequence number.
#[napi(object)]
pub struct NativeFoundEntry {
    /// Which of the logs has it.
    pub log_index: u32,
    /// Unix nanoseconds.
    pub time_ns: BigInt,
    /// The latest time of it and of what was logged before it, Unix nanoseconds.
    pub latest_ns: BigInt,
}

/// What logs bring, and how well it compresses.
#[napi(object)]
pub struct NativeChurn {
    pub write_count: f64,
    pub write_bytes: f64,
    /// Bytes zeroed or given back.
    pub zero_bytes: f64,
    /// What `writeBytes` would take at the entropy of their bytes.
    pub entropy_bytes: f64,
    /// Bytes of `writeBytes` that no compressor shrinks.
    pub noise_bytes: f64,
    /// Bytes of them that replace data that one shrinks.
    pub turned_bytes: f64,
}

/// Applies logs, in order, to an overlay, until the first entry that is later than `untilNs`, or behind the entry
/// `untilSequence`, where one is given.
#[napi(catch_unwind)]
pub fn apply_logs_until(
    handle: u32,
    logs: Vec<String>,
    until_ns: BigInt,
    until_sequence: Option<f64>,
) -> Result<()> {
    let until = match until_sequence {
        Some(sequence) => Until::Sequence(offset("untilSequence", sequence)?),
        None => Until::Time(nanoseconds("untilNs", &until_ns)?),
    };
    let device = block_device(handle)?;
    apply_until(&*device, &paths_of(&logs), until, &AtomicBool::new(false)).map_err(from_disk)?;
    Ok(())
}

/// Counts and lists the entries of logs of one disk, given in their order.
#[napi(catch_unwind)]
pub fn log_activity(logs: Vec<String>, window: NativeActivityWindow) -> Result<NativeLogActivity> {
    let window = ActivityWindow {
        around_ns: nanoseconds("aroundNs", &window.around_ns)?,
        from_ns: nanoseconds("fromNs", &window.from_ns)?,
        interval_ns: nanoseconds("intervalNs", &window.interval_ns)?,
        interval_count: window.interval_count as usize,
        entries_max: window.entries_max as usize,
    };
    let found = activity_of(&paths_of(&logs), &window).map_err(from_disk)?;
    let intervals = found.intervals.iter().map(|interval| NativeIntervalActivity {
        write_count: size(interval.write_count),
        write_bytes: size(interval.write_bytes),
        zero_bytes: size(interval.zero_bytes),
    });
    let listed = |entries: &[Entry]| entries.iter().map(entry_of).collect();
    Ok(NativeLogActivity {
        intervals: intervals.collect(),
        before: listed(&found.before),
        after: listed(&found.after),
    })
}

/// Finds an entry by its sequence number among logs of one disk, given in their order; null when none has it.
#[napi(catch_unwind)]
pub fn find_log_entry(logs: Vec<String>, sequence: f64) -> Result<Option<NativeFoundEntry>> {
    let found = find_entry(&paths_of(&logs), offset("sequence", sequence)?).map_err(from_disk)?;
    Ok(found.map(|found| NativeFoundEntry {
        log_index: found.log_index as u32,
        time_ns: found.time_ns.into(),
        latest_ns: found.latest_ns.into(),
    }))
}

/// Measures what verified logs will bring to an image; call it before they are applied.
#[napi(catch_unwind)]
pub fn measure_logs(image: String, logs: Vec<String>) -> Result<NativeChurn> {
    let image = FileDevice::open(Path::new(&image), Access::ReadOnly).map_err(from_disk)?;
    let churn = measure_churn(&image, &paths_of(&logs), &AtomicBool::new(false)).map_err(from_disk)?;
    Ok(NativeChurn {
        write_count: size(churn.write_count),
        write_bytes: size(churn.write_bytes),
        zero_bytes: size(churn.zero_bytes),
        entropy_bytes: size(churn.entropy_bytes),
        noise_bytes: size(churn.noise_bytes),
        turned_bytes: size(churn.turned_bytes),
    })
}

fn paths_of(logs: &[String]) -> Vec<&Path> {
    logs.iter().map(Path::new).collect()
}

fn nanoseconds(name: &str, value: &BigInt) -> Result<u64> {
    let (is_negative, nanoseconds, is_exact) = value.get_u64();
    if is_negative || !is_exact {
        return Err(bad_argument(name, "must be Unix nanoseconds below 2^64"));
    }
    Ok(nanoseconds)
}
