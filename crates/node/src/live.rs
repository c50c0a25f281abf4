//! Live disks: tracked disks that belong to the core, named by a number.
//!
//! The registry is shared by all threads of the process, so a worker may carry out what the engine's thread began.
//! Reads and writes run in libuv's threads as tasks; their errors travel in the result, since a rejected task would
//! lose its code.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use napi::bindgen_prelude::{AsyncTask, Uint8Array};
use napi::{Env, Task};
use napi_derive::napi;
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use secondsite_disk::{
    Access, BlockDevice, FileDevice, FlushMode, Mode, QueuedLog, Recovery, ResyncReason, TrackOptions,
    TrackedDisk, apply_logs as apply_to, build_batch, cut,
};
use secondsite_hrl::{LogId, LogOptions};

use crate::disks::digest_device;
use crate::error::{Result, bad_argument, from_disk, task_error};
use crate::number::{guid_bytes, offset, pairs_of, ranges_of, size};
use crate::sealed::{NativeSealedLog, sealed_log_of};

/// Changes with every start of the system.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

static DISKS: LazyLock<Mutex<HashMap<u32, Arc<TrackedDisk>>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A number that no live disk, view or overlay has had.
pub fn next_handle() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// How to open a live disk.
#[napi(object)]
pub struct NativeOpenOptions {
    pub path: String,
    pub tracking_directory: String,
    /// GUID text.
    pub disk_id: String,
    /// `disk` or `log`.
    pub flush_mode: String,
    /// Whether it was tracked before; a tracking file that is gone then owes a resynchronization. Default false.
    pub is_expected: Option<bool>,
    /// Size at which it is opened although it was tracked with a larger one; all of it is compared then.
    pub accepted_shrink_bytes: Option<f64>,
    /// Whether a disk that has grown is tracked up to its old end; default false: up to the new one.
    pub is_growth_deferred: Option<bool>,
}

/// A live disk as opened.
#[napi(object)]
pub struct NativeOpenedDisk {
    pub handle: u32,
    pub size_bytes: f64,
    pub sector_size_bytes: u32,
    /// `created`, `clean`, `process-death` or `power-loss`.
    pub recovery: String,
    pub redone_bytes: f64,
}

/// Counters of a live disk, one snapshot.
#[napi(object)]
pub struct NativeTrackedStatus {
    /// `logging` or `map`.
    pub mode: String,
    /// Why a resynchronization is owed, if one is.
    pub resync_reason: Option<String>,
    pub is_whole_disk_unknown: bool,
    pub size_bytes: f64,
    pub write_count: f64,
    pub written_bytes: f64,
    pub unreleased_log_bytes: f64,
    pub unreleased_log_count: f64,
    pub changed_bytes: f64,
    pub active_region_count: f64,
    pub last_hold_ns: f64,
    pub max_hold_ns: f64,
}

/// A batch: the log, and where the next one goes on.
#[napi(object)]
pub struct NativeBatch {
    pub log: NativeSealedLog,
    pub next_offset: f64,
}

/// Result of applying logs to an image.
#[napi(object)]
pub struct NativeApplyReport {
    pub entry_count: f64,
    pub written_bytes: f64,
    pub discarded_bytes: f64,
}

/// Opens a disk and tracks it, recovering what a crash left.
#[napi(catch_unwind)]
pub fn open_tracked(options: NativeOpenOptions) -> Result<NativeOpenedDisk> {
    let device = FileDevice::open(Path::new(&options.path), Access::Exclusive).map_err(from_disk)?;
    open_over(Arc::new(device), &options)
}

/// Tracks any disk; `path` of the options is not looked at.
pub fn open_over(device: Arc<dyn BlockDevice>, options: &NativeOpenOptions) -> Result<NativeOpenedDisk> {
    let sector_size_bytes = device.sector_size_bytes();
    let (disk, opened) = TrackedDisk::open(device, track_options(options)?).map_err(from_disk)?;
    // As far as it is tracked: the device may be larger.
    let (handle, size_bytes) = (next_handle(), disk.size_bytes());
    DISKS.lock().insert(handle, disk);
    Ok(NativeOpenedDisk {
        handle,
        size_bytes: size(size_bytes),
        sector_size_bytes,
        recovery: recovery_name(opened.recovery).to_owned(),
        redone_bytes: size(opened.redone_bytes),
    })
}

/// Notices that a disk has grown, and makes its new range usable; says its size.
#[napi(catch_unwind)]
pub fn grow_tracked(handle: u32) -> Result<f64> {
    live(handle)?.grow().map(size).map_err(from_disk)
}

/// Accepts that a disk has shrunk, to this size exactly.
#[napi(catch_unwind)]
pub fn shrink_tracked(handle: u32, size_bytes: f64) -> Result<()> {
    live(handle)?.shrink(offset("sizeBytes", size_bytes)?).map_err(from_disk)
}

/// Closes a live disk in order; its number is not used again.
#[napi(catch_unwind)]
pub fn close_tracked(handle: u32) -> Result<()> {
    let removed = DISKS.lock().remove(&handle);
    match removed {
        Some(disk) => disk.close().map_err(from_disk),
        None => Ok(()),
    }
}

/// Drops a live disk as the death of the process would.
#[napi(catch_unwind)]
pub fn abandon_tracked(handle: u32) {
    DISKS.lock().remove(&handle);
}

/// Rotates the logs of all disks as one cut; they are sealed and durable when this returns.
#[napi(catch_unwind)]
pub fn cut_tracked(handles: Vec<u32>) -> Result<()> {
    let disks = handles.into_iter().map(live).collect::<Result<Vec<_>>>()?;
    cut(&disks).map(|_| ()).map_err(from_disk)
}

#[napi(catch_unwind)]
pub fn tracked_status(handle: u32) -> Result<NativeTrackedStatus> {
    let disk = live(handle)?;
    let status = disk.status();
    Ok(NativeTrackedStatus {
        mode: if status.mode == Mode::Logging { "logging" } else { "map" }.to_owned(),
        resync_reason: status.resync_reason.map(|reason| reason.as_str().to_owned()),
        is_whole_disk_unknown: status.is_whole_disk_unknown,
        size_bytes: size(disk.size_bytes()),
        write_count: size(status.write_count),
        written_bytes: size(status.written_bytes),
        unreleased_log_bytes: size(status.unreleased_log_bytes),
        unreleased_log_count: size(status.unreleased_log_count as u64),
        changed_bytes: size(status.changed_bytes),
        active_region_count: size(status.active_region_count as u64),
        last_hold_ns: size(status.last_hold_ns),
        max_hold_ns: size(status.max_hold_ns),
    })
}

/// Sealed logs that were not released, in the order of their chain.
#[napi(catch_unwind)]
pub fn tracked_logs(handle: u32) -> Result<Vec<NativeSealedLog>> {
    Ok(live(handle)?.unreleased_logs().iter().map(queued_log_of).collect())
}

/// Deletes logs that the replica's image holds.
#[napi(catch_unwind)]
pub fn release_tracked_logs(handle: u32, ids: Vec<String>) -> Result<()> {
    live(handle)?.release_logs(&log_ids(&ids)?).map_err(from_disk)
}

/// Makes one log of consecutive ones; false when that saves too little.
#[napi(catch_unwind)]
pub fn coalesce_tracked_logs(handle: u32, ids: Vec<String>) -> Result<bool> {
    let coalesced = live(handle)?.coalesce_logs(&log_ids(&ids)?).map_err(from_disk)?;
    Ok(coalesced.is_some())
}

/// Gives up all unreleased logs for the changed map.
#[napi(catch_unwind)]
pub fn fold_tracked_logs(handle: u32, reason: String) -> Result<()> {
    live(handle)?.fold_logs_to_map(reason_of(&reason)?).map_err(from_disk)
}

/// Remembers that a resynchronization is owed.
#[napi(catch_unwind)]
pub fn require_tracked_resync(handle: u32, reason: String, is_whole_disk: bool) -> Result<()> {
    live(handle)?.require_resync(reason_of(&reason)?, is_whole_disk).map_err(from_disk)
}

/// Remembers that ranges, as flat pairs, have to be compared.
#[napi(catch_unwind)]
pub fn require_tracked_ranges(handle: u32, reason: String, ranges: Vec<f64>) -> Result<()> {
    let ranges = ranges_of(&ranges)?;
    live(handle)?.require_resync_of(reason_of(&reason)?, &ranges).map_err(from_disk)
}

/// What was written inside a window since the last acknowledged cut, as flat pairs.
#[napi(catch_unwind)]
pub fn tracked_dirty(handle: u32, from: f64, length_bytes: f64) -> Result<Vec<f64>> {
    let (from, length_bytes) = (offset("offset", from)?, offset("lengthBytes", length_bytes)?);
    Ok(pairs_of(&live(handle)?.dirty(from, length_bytes)))
}

/// Begins a resynchronization at an exact cut.
#[napi(catch_unwind)]
pub fn begin_tracked_resync(handle: u32) -> Result<()> {
    live(handle)?.begin_resync().map_err(from_disk)
}

/// Ends a resynchronization: the candidates are equal.
#[napi(catch_unwind)]
pub fn finish_tracked_resync(handle: u32) -> Result<()> {
    live(handle)?.finish_resync().map_err(from_disk)
}

/// Candidates inside a window, as flat pairs.
#[napi(catch_unwind)]
pub fn tracked_candidates(handle: u32, from: f64, length_bytes: f64) -> Result<Vec<f64>> {
    let (from, length_bytes) = (offset("offset", from)?, offset("lengthBytes", length_bytes)?);
    Ok(pairs_of(&live(handle)?.candidates(from, length_bytes)))
}

/// What was written inside a window since the last cut, as flat pairs.
#[napi(catch_unwind)]
pub fn tracked_written(handle: u32, from: f64, length_bytes: f64) -> Result<Vec<f64>> {
    let (from, length_bytes) = (offset("offset", from)?, offset("lengthBytes", length_bytes)?);
    Ok(pairs_of(&live(handle)?.written_since_cut(from, length_bytes)))
}

/// A second opening of a live disk, for who reads much of it: without read-ahead, which would fill the page cache with
/// folios that make the guest's writes slow. Its size is that of the live disk: one that has shrunk fails to be read.
fn scan_of(disk: &TrackedDisk) -> Result<FileDevice> {
    let opened = FileDevice::open(disk.path(), Access::ReadOnly).map_err(from_disk)?;
    Ok(opened.for_scans().with_size(disk.size_bytes()))
}

/// 16 bytes a chunk of `ranges` of a live disk.
#[napi(catch_unwind)]
pub fn digest_tracked(
    handle: u32,
    ranges: Vec<f64>,
    chunk_bytes: f64,
    digest: String,
    seed: String,
    digest_bytes: f64,
) -> Result<Uint8Array> {
    digest_device(&scan_of(live(handle)?.as_ref())?, &ranges, chunk_bytes, &digest, &seed, digest_bytes)
}

/// Builds a sealed log of the present content of `ranges` of a live disk.
#[napi(catch_unwind)]
pub fn build_tracked_batch(
    handle: u32,
    ranges: Vec<f64>,
    path: String,
    data_bytes_max: f64,
) -> Result<NativeBatch> {
    let disk = live(handle)?;
    let out = PathBuf::from(path);
    let now_ns = now_ns();
    let options = LogOptions {
        id: LogId(random()),
        previous_id: LogId::NONE,
        disk_id: disk.disk_id(),
        created_ns: now_ns,
        first_sequence: 0,
        key: random(),
        keep_space: false,
    };
    let data_bytes_max = offset("dataBytesMax", data_bytes_max)?;
    let ranges = ranges_of(&ranges)?;
    let (sealed, next_offset) =
        build_batch(&scan_of(&disk)?, &ranges, &out, options, data_bytes_max, now_ns).map_err(from_disk)?;
    Ok(NativeBatch { log: sealed_log_of(&out, &sealed, now_ns), next_offset: size(next_offset) })
}

/// Writes the entries of logs to an image, in order, and syncs it.
#[napi(catch_unwind)]
pub fn apply_logs(image: String, logs: Vec<String>, is_verified: bool) -> Result<NativeApplyReport> {
    let image = FileDevice::open(Path::new(&image), Access::Exclusive).map_err(from_disk)?;
    let paths: Vec<&Path> = logs.iter().map(Path::new).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let report = apply_to(&image, &paths, is_verified, &stop).map_err(from_disk)?;
    Ok(NativeApplyReport {
        entry_count: size(report.entry_count),
        written_bytes: size(report.written_bytes),
        discarded_bytes: size(report.discarded_bytes),
    })
}

/// A request to a disk, carried out in a thread of libuv.
pub struct DiskTask {
    disk: Arc<dyn BlockDevice>,
    request: Request,
}

pub enum Request {
    Read(u64, Uint8Array),
    Write(u64, Uint8Array),
    WriteZeroes(u64, u64),
    Discard(u64, u64),
    Flush,
}

#[napi]
impl Task for DiskTask {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        let disk = &self.disk;
        let done = match &mut self.request {
            // SAFETY: the caller was told not to touch the buffer before the promise settles, and the task keeps it alive.
            Request::Read(offset, buffer) => disk.read_at(*offset, unsafe { buffer.as_mut() }),
            Request::Write(offset, data) => disk.write_at(*offset, data.as_ref()),
            Request::WriteZeroes(offset, length) => disk.write_zeroes(*offset, *length, false),
            Request::Discard(offset, length) => disk.discard(*offset, *length),
            Request::Flush => disk.flush(),
        };
        done.map_err(|error| task_error(from_disk(error)))
    }

    fn resolve(&mut self, _env: Env, _output: ()) -> napi::Result<()> {
        Ok(())
    }
}

fn task(handle: u32, request: Request) -> Result<AsyncTask<DiskTask>> {
    Ok(task_of(live(handle)?, request))
}

/// A request to any disk.
pub fn task_of(disk: Arc<dyn BlockDevice>, request: Request) -> AsyncTask<DiskTask> {
    AsyncTask::new(DiskTask { disk, request })
}

/// Fills `buffer` from `offset`.
#[napi(catch_unwind)]
pub fn tracked_read(handle: u32, from: f64, buffer: Uint8Array) -> Result<AsyncTask<DiskTask>> {
    task(handle, Request::Read(offset("offset", from)?, buffer))
}

/// Writes `data` at `offset`; it must not change before the promise settles.
#[napi(catch_unwind)]
pub fn tracked_write(handle: u32, at: f64, data: Uint8Array) -> Result<AsyncTask<DiskTask>> {
    task(handle, Request::Write(offset("offset", at)?, data))
}

#[napi(catch_unwind)]
pub fn tracked_write_zeroes(handle: u32, at: f64, length_bytes: f64) -> Result<AsyncTask<DiskTask>> {
    task(handle, Request::WriteZeroes(offset("offset", at)?, offset("lengthBytes", length_bytes)?))
}

#[napi(catch_unwind)]
pub fn tracked_discard(handle: u32, at: f64, length_bytes: f64) -> Result<AsyncTask<DiskTask>> {
    task(handle, Request::Discard(offset("offset", at)?, offset("lengthBytes", length_bytes)?))
}

#[napi(catch_unwind)]
pub fn tracked_flush(handle: u32) -> Result<AsyncTask<DiskTask>> {
    task(handle, Request::Flush)
}

/// The live disk of a number.
pub fn live(handle: u32) -> Result<Arc<TrackedDisk>> {
    let disk = DISKS.lock().get(&handle).cloned();
    disk.ok_or_else(|| bad_argument("handle", &format!("{handle} is not an open disk")))
}

fn track_options(options: &NativeOpenOptions) -> Result<TrackOptions> {
    let flush_mode = match options.flush_mode.as_str() {
        "disk" => FlushMode::Disk,
        "log" => FlushMode::Log,
        other => return Err(bad_argument("flushMode", &format!("{other:?} is neither disk nor log"))),
    };
    let disk_id = guid_bytes("diskId", &options.disk_id)?;
    let boot_id = boot_id();
    let directory = PathBuf::from(&options.tracking_directory);
    let defaults = TrackOptions::new(directory, disk_id, boot_id, Arc::new(now_ns), Arc::new(fill_random));
    // The engine brings the replica to the new size before anything of the new range is applied there.
    let is_expected = options.is_expected.unwrap_or(false);
    let is_growth_deferred = options.is_growth_deferred.unwrap_or(false);
    let accepted = options.accepted_shrink_bytes.map(|bytes| offset("acceptedShrinkBytes", bytes));
    Ok(TrackOptions {
        flush_mode,
        is_expected,
        is_growth_accepted: true,
        is_growth_deferred,
        accepted_shrink_bytes: accepted.transpose()?,
        ..defaults
    })
}

/// Changes with every start of the system.
pub fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default()
}

fn recovery_name(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::Created => "created",
        Recovery::Clean => "clean",
        Recovery::ProcessDeath => "process-death",
        Recovery::PowerLoss => "power-loss",
    }
}

fn reason_of(name: &str) -> Result<ResyncReason> {
    ResyncReason::from_name(name).ok_or_else(|| bad_argument("reason", &format!("{name:?} is not known")))
}

fn queued_log_of(log: &QueuedLog) -> NativeSealedLog {
    sealed_log_of(&log.path, &log.sealed, log.cut_time_ns)
}

fn log_ids(ids: &[String]) -> Result<Vec<LogId>> {
    ids.iter().map(|id| guid_bytes("id", id).map(LogId)).collect()
}

pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    fill_random(&mut bytes);
    bytes
}

/// The operating system's randomness; the call fails only where Linux has none, which it does not survive itself.
pub fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
}
