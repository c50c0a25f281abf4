//! Log files by path: look at them, check them, export and coalesce them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use napi::bindgen_prelude::BigInt;
use napi_derive::napi;
use parking_lot::Mutex;
use secondsite_hrl::{
    ChainLink, Damage, DamageKind, Entry, HrlError, LogHeader, LogStatistics, Operation, Report,
};

use crate::error::{Result, bad_argument, from_log};
use crate::number::{guid_text, ms, offset, size};

type Batch = std::result::Result<Vec<Entry>, HrlError>;

/// Lists of entries that are being read.
static LISTS: LazyLock<Mutex<HashMap<u32, Receiver<Batch>>>> = LazyLock::new(Mutex::default);
static NEXT_LIST: AtomicU32 = AtomicU32::new(1);

/// The header of a log, in plain units.
#[napi(object)]
pub struct NativeLogHeader {
    /// LogFormatVersion, "1.0" or "2.0".
    pub version: String,
    /// CreatorApplication, without padding.
    pub creator: String,
    /// UniqueId as GUID text.
    pub id: String,
    /// PreviousUniqueId as GUID text.
    pub previous_id: String,
    /// Vhd2DataWriteGuid as GUID text; empty in version 1.
    pub disk_id: String,
    /// Unix milliseconds.
    pub created_ms: f64,
    /// Unix milliseconds.
    pub modified_ms: f64,
    /// EOLLocation; 0 while the log is open.
    pub end_of_log: f64,
    pub metadata_size_bytes: u32,
    pub entry_count: f64,
    pub current_size_bytes: f64,
    pub error_code: i32,
}

/// What is wrong with a log, and where.
#[napi(object)]
pub struct NativeLogDamage {
    pub code: String,
    pub path: String,
    pub offset: f64,
    pub reason: String,
    /// True for the normal end of a log after a crash, false for damage in the middle.
    pub is_torn: bool,
}

/// Counts over the entries of a log.
#[napi(object)]
pub struct NativeLogStatistics {
    pub entry_count: f64,
    pub write_count: f64,
    pub write_bytes: f64,
    pub zero_bytes: f64,
    pub discard_bytes: f64,
    /// Unix milliseconds; 0 without entries.
    pub first_time_ms: f64,
    /// Unix milliseconds; 0 without entries.
    pub last_time_ms: f64,
    /// Highest end of an entry on the disk.
    pub disk_end_offset: f64,
}

/// A log as found.
#[napi(object)]
pub struct NativeLogReport {
    pub path: String,
    pub log_size_bytes: f64,
    pub header: Option<NativeLogHeader>,
    pub has_index: bool,
    pub is_sealed: bool,
    pub statistics: NativeLogStatistics,
    pub damage: Vec<NativeLogDamage>,
}

/// An entry of a log.
#[napi(object)]
pub struct NativeLogEntry {
    /// `write`, `write-zeroes` or `discard`.
    pub operation: String,
    pub offset: f64,
    pub length_bytes: f64,
    pub sequence: f64,
    /// Unix nanoseconds; whole seconds where the log has no index.
    pub time_ns: BigInt,
}

/// Result of an export.
#[napi(object)]
pub struct NativeExport {
    pub entry_count: f64,
    pub log_size_bytes: f64,
}

/// Says what a log is and everything that is wrong with it; damage is part of the answer, not an error.
#[napi(catch_unwind)]
pub fn inspect_log(path: String) -> Result<NativeLogReport> {
    secondsite_hrl::inspect(Path::new(&path)).map(report_of).map_err(from_log)
}

/// Checks a sealed log completely; throws the first damage found. `diskSizeBytes` 0 means unknown.
#[napi(catch_unwind)]
pub fn verify_log(path: String, disk_size_bytes: f64) -> Result<NativeLogStatistics> {
    let size_bytes = offset("diskSizeBytes", disk_size_bytes)?;
    let limit = (size_bytes > 0).then_some(size_bytes);
    secondsite_hrl::verify(Path::new(&path), limit).map(statistics_of).map_err(from_log)
}

/// Checks that logs, in the order given, form one chain of one disk.
#[napi(catch_unwind)]
pub fn verify_log_chain(paths: Vec<String>) -> Result<()> {
    let links =
        paths.iter().map(|path| ChainLink::open(Path::new(path))).collect::<std::result::Result<Vec<_>, _>>();
    secondsite_hrl::verify_chain(&links.map_err(from_log)?).map_err(from_log)
}

/// Begins to list the entries of a log of any state; a thread of the core walks it, two batches ahead at most.
#[napi(catch_unwind)]
pub fn open_log_entries(path: String) -> u32 {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        // A list that nobody takes from any more has no receiver: the walk ends.
        let listed = secondsite_hrl::list_entries(Path::new(&path), &mut |batch| {
            sender.send(Ok(batch.to_vec())).is_ok()
        });
        if let Err(damage) = listed {
            let _ = sender.send(Err(damage));
        }
    });
    let handle = NEXT_LIST.fetch_add(1, Ordering::Relaxed);
    LISTS.lock().insert(handle, receiver);
    handle
}

/// The next entries, at most 4096; none at the end. Throws what stopped the list, after all that could be read.
#[napi(catch_unwind)]
pub fn next_log_entries(handle: u32) -> Result<Vec<NativeLogEntry>> {
    let receiver = LISTS.lock().remove(&handle);
    let Some(receiver) = receiver else { return Err(bad_argument("handle", "no such list of entries")) };
    let next = receiver.recv();
    LISTS.lock().insert(handle, receiver);
    match next {
        Ok(batch) => batch.map_err(from_log).map(|entries| entries.iter().map(entry_of).collect()),
        Err(_) => Ok(Vec::new()), // The walk has ended.
    }
}

/// Forgets a list, ended or not.
#[napi(catch_unwind)]
pub fn close_log_entries(handle: u32) {
    LISTS.lock().remove(&handle);
}

/// Writes a sealed log as strict [MS-HRL], which a Hyper-V reader accepts: no seals, zeros spelled out.
#[napi(catch_unwind)]
pub fn export_strict_log(input: String, output: String) -> Result<NativeExport> {
    let exported = secondsite_hrl::export_strict(Path::new(&input), Path::new(&output)).map_err(from_log)?;
    Ok(NativeExport {
        entry_count: size(exported.entry_count),
        log_size_bytes: size(exported.log_size_bytes),
    })
}

fn report_of(report: Report) -> NativeLogReport {
    NativeLogReport {
        path: report.path.to_string_lossy().into_owned(),
        log_size_bytes: size(report.log_size_bytes),
        is_sealed: report.header.as_ref().is_some_and(LogHeader::is_sealed),
        header: report.header.map(header_of),
        has_index: report.has_index,
        statistics: statistics_of(report.statistics),
        damage: report.damage.into_iter().map(damage_of).collect(),
    }
}

fn header_of(header: LogHeader) -> NativeLogHeader {
    let creator: Vec<u8> = header.creator_application.into_iter().take_while(|byte| *byte != 0).collect();
    NativeLogHeader {
        version: format!("{}.{}", header.version >> 16, header.version & 0xffff),
        creator: String::from_utf8_lossy(&creator).trim_end().to_owned(),
        id: header.id.to_string(),
        previous_id: header.previous_id.to_string(),
        disk_id: header.disk_id.map(guid_text).unwrap_or_default(),
        created_ms: ms(secondsite_hrl::unix_ns(header.created_seconds)),
        modified_ms: ms(secondsite_hrl::unix_ns(header.modified_seconds)),
        end_of_log: size(header.end_of_log),
        metadata_size_bytes: header.metadata_size_bytes,
        entry_count: size(header.entry_count),
        current_size_bytes: size(header.current_size_bytes),
        error_code: header.error_code,
    }
}

fn statistics_of(statistics: LogStatistics) -> NativeLogStatistics {
    NativeLogStatistics {
        entry_count: size(statistics.entry_count),
        write_count: size(statistics.write_count),
        write_bytes: size(statistics.write_bytes),
        zero_bytes: size(statistics.zero_bytes),
        discard_bytes: size(statistics.discard_bytes),
        first_time_ms: ms(statistics.first_time_ns.unwrap_or(0)),
        last_time_ms: ms(statistics.last_time_ns.unwrap_or(0)),
        disk_end_offset: size(statistics.disk_end_offset),
    }
}

fn damage_of(damage: Damage) -> NativeLogDamage {
    NativeLogDamage {
        code: damage.code.to_owned(),
        path: damage.place.path.to_string_lossy().into_owned(),
        offset: size(damage.place.offset),
        reason: damage.place.reason,
        is_torn: damage.kind == DamageKind::Torn,
    }
}

pub fn entry_of(entry: &Entry) -> NativeLogEntry {
    let operation = match entry.operation {
        Operation::Write => "write",
        Operation::WriteZeroes => "write-zeroes",
        Operation::Discard => "discard",
    };
    NativeLogEntry {
        operation: operation.to_owned(),
        offset: size(entry.offset),
        length_bytes: f64::from(entry.length_bytes),
        sequence: size(entry.sequence),
        time_ns: BigInt::from(entry.time_ns),
    }
}
