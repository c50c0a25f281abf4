//! A view, or a layer over one, as a raw file of its own.
//!
//! Where the file system can share blocks (FICLONE), the image is cloned and what was overwritten since the point is put
//! back. The clone may be taken in the middle of a cycle: the ranges to put back are asked for afterwards, so whatever the
//! clone has of the cycle is among them. Elsewhere the view is copied, its holes left out.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use secondsite_hrl::sync_folder;

use super::changed::{Latest, changed_ranges};
use super::point::PointView;
use crate::device::{BlockDevice, ExtentKind};
use crate::error::{DiskError, Place, Result};
use crate::file::FileDevice;
use crate::work::Work;

/// Bytes read and written at once.
const PIECE_BYTES: u64 = 4 << 20;
/// Ranges asked for at once.
const RANGES_MAX: usize = 4096;

/// Writes a view to `out`, which must not exist, and makes it durable. On an error nothing is left.
///
/// # Errors
/// DISK_IN_USE when `out` exists; UNDO_DAMAGED; DISK_FULL, DISK_WRITE_FAILED, DISK_READ_FAILED; ABORTED.
pub fn materialize(view: &PointView, out: &Path, work: &Work) -> Result<()> {
    write_out(view.size_bytes(), out, |target| write(view, target, work))
}

/// The same of a disk that is no view: a layer with writes of its own over one. It is copied, its holes left out.
///
/// # Errors
/// As [`materialize`].
pub fn materialize_device(device: &dyn BlockDevice, out: &Path, work: &Work) -> Result<()> {
    let size_bytes = device.size_bytes();
    write_out(size_bytes, out, |target| copy(device, target, 0, size_bytes, work))
}

fn write_out(size_bytes: u64, out: &Path, fill: impl FnOnce(&FileDevice) -> Result<()>) -> Result<()> {
    let target = FileDevice::create(out, size_bytes)?;
    let written = fill(&target)
        .and_then(|()| target.flush())
        .and_then(|()| Ok(sync_folder(out.parent().unwrap_or(Path::new(".")))?));
    if written.is_err() {
        // The error is what counts; a file that cannot be removed either is the operator's to see.
        let _ = fs::remove_file(out);
    }
    written
}

fn write(view: &PointView, target: &FileDevice, work: &Work) -> Result<()> {
    if !clone_image(view, target)? {
        return copy(view, target, 0, view.size_bytes(), work);
    }
    let mut at = 0;
    loop {
        let ranges = changed_ranges(view.folder(), view.point(), Latest::Image, at, RANGES_MAX)?;
        let Some(&(last, length)) = ranges.last() else { break };
        for (offset, length_bytes) in ranges {
            let end = (offset + length_bytes).min(view.size_bytes());
            work.done_bytes.store(offset, Ordering::Relaxed);
            if offset < end {
                copy(view, target, offset, end, work)?;
            }
        }
        at = last + length;
    }
    work.done_bytes.store(view.size_bytes(), Ordering::Relaxed);
    Ok(())
}

/// Shares the blocks of the image with the target; false where that cannot be done.
fn clone_image(view: &PointView, target: &FileDevice) -> Result<bool> {
    let Ok(image) = File::open(view.image().path()) else { return Ok(false) };
    if rustix::fs::ioctl_ficlone(target.file().as_fd(), image.as_fd()).is_err() {
        return Ok(false);
    }
    // The image may have grown since the point.
    let sized = target.file().set_len(view.size_bytes());
    sized.map_err(|e| DiskError::write(Place::whole(target.path()), e))?;
    Ok(true)
}

fn copy(view: &dyn BlockDevice, target: &FileDevice, from: u64, end: u64, work: &Work) -> Result<()> {
    let mut buffer = vec![0; PIECE_BYTES.min(end - from) as usize];
    let mut at = from;
    while at < end {
        if work.stop.load(Ordering::Relaxed) {
            return Err(DiskError::Stopped(Place::whole(target.path())));
        }
        let extent = view.extent_at(at, end)?;
        let length = match extent.kind {
            ExtentKind::Hole => {
                target.discard(at, extent.length_bytes)?;
                extent.length_bytes
            }
            // Small extents stand close together: a piece over several of them is one write.
            ExtentKind::Data => copy_piece(view, target, at, end, &mut buffer, work)?,
        };
        at += length;
        work.done_bytes.fetch_max(at, Ordering::Relaxed);
    }
    Ok(())
}

fn copy_piece(
    view: &dyn BlockDevice,
    target: &FileDevice,
    at: u64,
    end: u64,
    buffer: &mut [u8],
    work: &Work,
) -> Result<u64> {
    let mut stop = at;
    while stop < end && stop - at < buffer.len() as u64 {
        let extent = view.extent_at(stop, end.min(at + buffer.len() as u64))?;
        if extent.kind == ExtentKind::Hole {
            break;
        }
        stop = extent.end();
    }
    let piece = &mut buffer[..(stop - at) as usize];
    view.read_at(at, piece)?;
    target.write_at(at, piece)?;
    work.copied_bytes.fetch_add(stop - at, Ordering::Relaxed);
    Ok(stop - at)
}
