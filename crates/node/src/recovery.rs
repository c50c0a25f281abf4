//! Recovery points: undo folders by path, views and overlays as devices named by a number.
//!
//! Numbers are shared with the live disks, so a server offers either. Long calls take the number of a *work*, by which
//! another thread sees how far they are, and ends them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use napi::bindgen_prelude::{AsyncTask, Uint8Array};
use napi_derive::napi;
use parking_lot::Mutex;
use secondsite_disk::{
    Access, BlockDevice, FileDevice, Latest, MergeReport, Overlay, PointView, SaveReport, UndoOptions,
    ViewOptions, Work, changed_ranges as changed, compact_point as compact, differing_ranges,
    drop_points_before as drop_before, materialize as materialize_view, materialize_device,
    merge_point as merge, pinned_points as pinned, save_undo as save, save_undo_ranges as save_ranges,
    undo_summary as summary_of,
};

use crate::disks::digest_device;
use crate::error::{Result, bad_argument, from_disk};
use crate::live::{DiskTask, Request, fill_random, next_handle, now_ns, task_of};
use crate::number::{guid_bytes, offset, pairs_of, ranges_of, size};

static DEVICES: LazyLock<Mutex<HashMap<u32, Device>>> = LazyLock::new(Mutex::default);
static WORKS: LazyLock<Mutex<HashMap<u32, Arc<Work>>>> = LazyLock::new(Mutex::default);

/// A device by its number.
#[derive(Clone)]
pub enum Device {
    View(Arc<PointView>),
    /// With the view below it, if there is one.
    Overlay(Arc<Overlay>, Option<Arc<PointView>>),
}

impl Device {
    fn block_device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::View(view) => view.clone(),
            Self::Overlay(overlay, _) => overlay.clone(),
        }
    }
}

/// An undo folder, the point that is saved for, and its disk.
#[napi(object)]
pub struct NativeUndoTarget {
    pub undo_directory: String,
    pub point: f64,
    /// GUID text.
    pub disk_id: String,
    /// Number of a work.
    pub work: Option<u32>,
}

/// What was saved.
#[napi(object)]
pub struct NativeSaveReport {
    pub saved_bytes: f64,
    pub data_bytes: f64,
    pub range_count: f64,
    pub written_bytes: f64,
}

/// What a merge did.
#[napi(object)]
pub struct NativeMergeReport {
    pub written_bytes: f64,
    pub deleted_count: f64,
}

/// The undo of one point.
#[napi(object)]
pub struct NativeUndoPoint {
    pub point: f64,
    pub segment_count: f64,
    pub stored_bytes: f64,
    pub range_count: f64,
}

/// Damage of an undo folder.
#[napi(object)]
pub struct NativeUndoDamage {
    pub path: String,
    pub offset: f64,
    pub reason: String,
    /// Points up to this one are damaged; -1 when all are.
    pub through_point: f64,
}

/// What an undo folder holds.
#[napi(object)]
pub struct NativeUndoSummary {
    pub points: Vec<NativeUndoPoint>,
    pub damage: Vec<NativeUndoDamage>,
}

/// Which point of which replica to view.
#[napi(object)]
pub struct NativeViewOptions {
    pub image: String,
    pub undo_directory: String,
    pub point: f64,
    /// Size of the disk at the point, when it has another one now.
    pub size_bytes: Option<f64>,
}

/// A view or an overlay as opened.
#[napi(object)]
pub struct NativeDevice {
    pub handle: u32,
    pub size_bytes: f64,
    pub sector_size_bytes: u32,
}

/// How far a work is.
#[napi(object)]
pub struct NativeProgress {
    pub done_bytes: f64,
    pub copied_bytes: f64,
}

/// Begins to count a work; the number goes to the call that does it.
#[napi(catch_unwind)]
pub fn begin_work() -> u32 {
    let handle = next_handle();
    WORKS.lock().insert(handle, Arc::default());
    handle
}

/// How far a work is.
#[napi(catch_unwind)]
pub fn work_progress(handle: u32) -> Result<NativeProgress> {
    let work = work(Some(handle))?;
    Ok(NativeProgress {
        done_bytes: size(work.done_bytes.load(Ordering::Relaxed)),
        copied_bytes: size(work.copied_bytes.load(Ordering::Relaxed)),
    })
}

/// Lets a work end with ABORTED.
#[napi(catch_unwind)]
pub fn stop_work(handle: u32) -> Result<()> {
    work(Some(handle))?.stop.store(true, Ordering::Relaxed);
    Ok(())
}

/// Forgets a work; its number is not used again.
#[napi(catch_unwind)]
pub fn end_work(handle: u32) {
    WORKS.lock().remove(&handle);
}

pub fn work(handle: Option<u32>) -> Result<Arc<Work>> {
    let Some(handle) = handle else { return Ok(Arc::default()) };
    let work = WORKS.lock().get(&handle).cloned();
    work.ok_or_else(|| bad_argument("work", &format!("{handle} is not a work")))
}

/// Saves what logs are about to overwrite.
#[napi(catch_unwind)]
pub fn save_undo(image: String, logs: Vec<String>, target: NativeUndoTarget) -> Result<NativeSaveReport> {
    let image = FileDevice::open(Path::new(&image), Access::ReadOnly).map_err(from_disk)?;
    let paths: Vec<&Path> = logs.iter().map(Path::new).collect();
    let (folder, point) = (Path::new(&target.undo_directory), offset("point", target.point)?);
    let (options, work) = (undo_options(&target.disk_id)?, work(target.work)?);
    let report = save(&image, &paths, folder, point, &options, &work.stop).map_err(from_disk)?;
    Ok(save_report_of(&report))
}

/// Saves what is about to be written to ranges by other means.
#[napi(catch_unwind)]
pub fn save_undo_ranges(
    image: String,
    ranges: Vec<f64>,
    target: NativeUndoTarget,
) -> Result<NativeSaveReport> {
    let image = FileDevice::open(Path::new(&image), Access::ReadOnly).map_err(from_disk)?;
    let (folder, point) = (Path::new(&target.undo_directory), offset("point", target.point)?);
    let (options, work) = (undo_options(&target.disk_id)?, work(target.work)?);
    let report = save_ranges(&image, &ranges_of(&ranges)?, folder, point, &options, &work.stop);
    Ok(save_report_of(&report.map_err(from_disk)?))
}

/// Moves what a point saved to the next older kept one.
#[napi(catch_unwind)]
pub fn merge_point(target: NativeUndoTarget, into: f64) -> Result<NativeMergeReport> {
    let (folder, from) = (Path::new(&target.undo_directory), offset("point", target.point)?);
    let (options, work) = (undo_options(&target.disk_id)?, work(target.work)?);
    let merged = merge(folder, from, offset("into", into)?, &options, &work.stop);
    Ok(merge_report_of(merged.map_err(from_disk)?))
}

/// Brings the small segments of a point together.
#[napi(catch_unwind)]
pub fn compact_point(target: NativeUndoTarget) -> Result<NativeMergeReport> {
    let (folder, point) = (Path::new(&target.undo_directory), offset("point", target.point)?);
    let (options, work) = (undo_options(&target.disk_id)?, work(target.work)?);
    Ok(merge_report_of(compact(folder, point, &options, &work.stop).map_err(from_disk)?))
}

/// Deletes the undo of all points older than one.
#[napi(catch_unwind)]
pub fn drop_points_before(undo_directory: String, point: f64) -> Result<NativeMergeReport> {
    let dropped = drop_before(Path::new(&undo_directory), offset("point", point)?);
    Ok(merge_report_of(dropped.map_err(from_disk)?))
}

/// Points that somebody reads, each once for each of its readers.
#[napi(catch_unwind)]
pub fn pinned_points(undo_directory: String) -> Result<Vec<f64>> {
    let points = pinned(Path::new(&undo_directory)).map_err(from_disk)?;
    Ok(points.into_iter().map(size).collect())
}

/// What an undo folder holds.
#[napi(catch_unwind)]
pub fn undo_summary(undo_directory: String, is_deep: bool) -> Result<NativeUndoSummary> {
    let summary = summary_of(Path::new(&undo_directory), is_deep).map_err(from_disk)?;
    let points = summary.points.iter().map(|point| NativeUndoPoint {
        point: size(point.point),
        segment_count: size(point.segment_count),
        stored_bytes: size(point.stored_bytes),
        range_count: size(point.range_count),
    });
    let damage = summary.damage.iter().map(|damage| NativeUndoDamage {
        path: damage.path.to_string_lossy().into_owned(),
        offset: size(damage.offset),
        reason: damage.reason.clone(),
        through_point: damage.through_point.map_or(-1.0, size),
    });
    Ok(NativeUndoSummary { points: points.collect(), damage: damage.collect() })
}

/// Opens a point for reading, and pins it.
#[napi(catch_unwind)]
pub fn open_view(options: NativeViewOptions) -> Result<NativeDevice> {
    let image = FileDevice::open(Path::new(&options.image), Access::ReadOnly).map_err(from_disk)?;
    let size_bytes = options.size_bytes.map(|size| offset("sizeBytes", size)).transpose()?;
    let random = Arc::new(fill_random);
    let view_options = ViewOptions { point: offset("point", options.point)?, size_bytes, random };
    let view = PointView::open(Path::new(&options.undo_directory), Arc::new(image), &view_options);
    Ok(register(Device::View(Arc::new(view.map_err(from_disk)?))))
}

/// Lets go of a view or an overlay, which ends when its last user does; its number is not used again.
#[napi(catch_unwind)]
pub fn close_device(handle: u32) {
    DEVICES.lock().remove(&handle);
}

/// Ranges that were overwritten between two points, as flat pairs; `to` is -1 for the image as it stands.
#[napi(catch_unwind)]
pub fn changed_ranges(undo_directory: String, from: f64, to: f64, at: f64, count: u32) -> Result<Vec<f64>> {
    let to = if to < 0.0 { Latest::Image } else { Latest::Point(offset("to", to)?) };
    let (from, at) = (offset("from", from)?, offset("at", at)?);
    let ranges = changed(Path::new(&undo_directory), from, to, at, count as usize).map_err(from_disk)?;
    Ok(pairs_of(&ranges))
}

/// The parts of ranges in which two devices differ.
#[napi(catch_unwind)]
pub fn differing_device_ranges(a: u32, b: u32, ranges: Vec<f64>, handle: Option<u32>) -> Result<Vec<f64>> {
    let (a, b, work) = (block_device(a)?, block_device(b)?, work(handle)?);
    let found = differing_ranges(&*a, &*b, &ranges_of(&ranges)?, &work.stop).map_err(from_disk)?;
    Ok(pairs_of(&found))
}

/// Writes a view, or what an overlay shows, to a file that must not exist.
#[napi(catch_unwind)]
pub fn materialize(view: u32, out: String, handle: Option<u32>) -> Result<()> {
    let (out, work) = (Path::new(&out), work(handle)?);
    let written = match device(view)? {
        Device::View(view) => materialize_view(&view, out, &work),
        Device::Overlay(overlay, _) => materialize_device(&*overlay, out, &work),
    };
    written.map_err(from_disk)
}

/// 16 bytes a chunk of `ranges` of a view or an overlay.
#[napi(catch_unwind)]
pub fn digest_of_device(
    handle: u32,
    ranges: Vec<f64>,
    chunk_bytes: f64,
    digest: String,
    seed: String,
    digest_bytes: f64,
) -> Result<Uint8Array> {
    digest_device(&*block_device(handle)?, &ranges, chunk_bytes, &digest, &seed, digest_bytes)
}

/// Fills `buffer` from `offset` of a view or an overlay.
#[napi(catch_unwind)]
pub fn read_device(handle: u32, from: f64, buffer: Uint8Array) -> Result<AsyncTask<DiskTask>> {
    Ok(task_of(block_device(handle)?, Request::Read(offset("offset", from)?, buffer)))
}

/// Writes `data` at `offset` of an overlay; it must not change before the promise settles.
#[napi(catch_unwind)]
pub fn write_device(handle: u32, at: f64, data: Uint8Array) -> Result<AsyncTask<DiskTask>> {
    Ok(task_of(block_device(handle)?, Request::Write(offset("offset", at)?, data)))
}

#[napi(catch_unwind)]
pub fn discard_device(handle: u32, at: f64, length_bytes: f64) -> Result<AsyncTask<DiskTask>> {
    let request = Request::Discard(offset("offset", at)?, offset("lengthBytes", length_bytes)?);
    Ok(task_of(block_device(handle)?, request))
}

#[napi(catch_unwind)]
pub fn flush_device(handle: u32) -> Result<AsyncTask<DiskTask>> {
    Ok(task_of(block_device(handle)?, Request::Flush))
}

pub fn view_of(handle: u32) -> Result<Arc<PointView>> {
    match device(handle)? {
        Device::View(view) => Ok(view),
        Device::Overlay(..) => Err(bad_argument("view", &format!("{handle} is not a view"))),
    }
}

pub fn overlay(handle: u32) -> Result<(Arc<Overlay>, Option<Arc<PointView>>)> {
    match device(handle)? {
        Device::Overlay(overlay, view) => Ok((overlay, view)),
        Device::View(_) => Err(bad_argument("overlay", &format!("{handle} is not an overlay"))),
    }
}

pub fn register(device: Device) -> NativeDevice {
    let (handle, opened) = (next_handle(), device.block_device());
    DEVICES.lock().insert(handle, device);
    NativeDevice {
        handle,
        size_bytes: size(opened.size_bytes()),
        sector_size_bytes: opened.sector_size_bytes(),
    }
}

fn device(handle: u32) -> Result<Device> {
    let device = DEVICES.lock().get(&handle).cloned();
    device.ok_or_else(|| bad_argument("handle", &format!("{handle} is not an open device")))
}

/// The view or overlay of a number.
pub fn block_device(handle: u32) -> Result<Arc<dyn BlockDevice>> {
    device(handle).map(|device| device.block_device())
}

/// Whether a number names a view or an overlay.
pub fn is_device(handle: u32) -> bool {
    DEVICES.lock().contains_key(&handle)
}

/// Puts another device under a number.
pub fn replace(handle: u32, device: Device) {
    DEVICES.lock().insert(handle, device);
}

/// Whether a number names an overlay.
pub fn is_writable(handle: u32) -> bool {
    !matches!(DEVICES.lock().get(&handle), Some(Device::View(_)))
}

fn undo_options(disk_id: &str) -> Result<UndoOptions> {
    let disk_id = guid_bytes("diskId", disk_id)?;
    Ok(UndoOptions { disk_id, clock: Arc::new(now_ns), random: Arc::new(fill_random) })
}

fn save_report_of(report: &SaveReport) -> NativeSaveReport {
    NativeSaveReport {
        saved_bytes: size(report.saved_bytes),
        data_bytes: size(report.data_bytes),
        range_count: size(report.range_count),
        written_bytes: size(report.written_bytes),
    }
}

fn merge_report_of(report: MergeReport) -> NativeMergeReport {
    NativeMergeReport { written_bytes: size(report.written_bytes), deleted_count: size(report.deleted_count) }
}
