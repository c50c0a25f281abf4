//! Settling: the image becomes what the overlay shows, while a guest goes on reading and writing.
//!
//! From the first step on writes go to the image, and make their blocks settled. In the background every block that the overlay
//! holds, and every range that was overwritten in the image since the point of the view below, is copied to the image
//! under the lock of its blocks, unless it is settled already. When nothing is left, the image is all there is.
//!
//! The data of a block is given back only when its settled state, and with it the image's bytes, are durable. So at any
//! moment what the durable map says can be read: an absent block from the view, whose undo is untouched, a present one from
//! the data, a settled one from the image. Writes that were not flushed are in the image or not, as on any disk.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::Overlay;
use super::header::OverlayState;
use super::map::{BLOCK_BYTES, Block};
use crate::device::{BlockDevice, ExtentKind};
use crate::error::{DiskError, Place, Result};
use crate::view::{Latest, PointView, changed_ranges};
use crate::work::Work;

/// Blocks that are copied under one lock: 1 MiB.
const PIECE_BLOCKS: u64 = 256;
/// Ranges asked for at once.
const RANGES_MAX: usize = 4096;

impl Overlay {
    /// Makes `image` what the overlay shows, and the overlay nothing but a way to it. Guests may go on meanwhile; ended
    /// in whatever way, it goes on where it was when it is called again.
    ///
    /// `view` is the base, when that is a view of `image`. Nobody else may read its undo folder, as the image is written
    /// without undo; the caller has dropped all points.
    ///
    /// # Errors
    /// DISK_IN_USE when somebody else reads a point of the image; OPTION_OUT_OF_RANGE for another size; ABORTED;
    /// errors of the disks.
    pub fn settle(&self, image: Arc<dyn BlockDevice>, view: Option<&PointView>, work: &Work) -> Result<()> {
        if self.state() == OverlayState::Settled {
            return Ok(());
        }
        self.check_image(&*image, view)?;
        self.begin(image.clone())?;
        let mut settling = Settling { overlay: self, image: &*image, work, copied: Vec::new(), count: 0 };
        settling.overlaid()?;
        if let Some(view) = view {
            settling.undone(view)?;
        }
        self.flush()?; // Most of it before everybody has to wait.
        let _nobody_writes = self.lock.hold(0..u64::MAX);
        self.flush()?;
        self.map.set_overlay_state(OverlayState::Settled)?;
        self.set_base(image);
        // All of it is in the image; room that cannot be given back now goes with the folder.
        let _ = self.data.discard(0, self.data.size_bytes());
        Ok(())
    }

    fn check_image(&self, image: &dyn BlockDevice, view: Option<&PointView>) -> Result<()> {
        if image.size_bytes() < self.size_bytes() {
            let reason = format!("an image of {} bytes", image.size_bytes());
            return Err(DiskError::InvalidRequest(Place::whole(self.path()), reason));
        }
        match view {
            Some(view) => view.refuse_if_shared(),
            None => Ok(()),
        }
    }

    fn begin(&self, image: Arc<dyn BlockDevice>) -> Result<()> {
        if self.state() == OverlayState::Active {
            self.flush()?;
        }
        *self.image.write() = Some(image);
        self.map.set_overlay_state(OverlayState::Settling)?;
        drop(self.lock.hold(0..u64::MAX)); // Writes that began before are in the overlay when this returns.
        Ok(())
    }
}

struct Settling<'s> {
    overlay: &'s Overlay,
    image: &'s dyn BlockDevice,
    work: &'s Work,
    /// Blocks whose data can be given back after the next flush.
    copied: Vec<Range<u64>>,
    count: u64,
}

impl Settling<'_> {
    /// Copies what the overlay holds.
    fn overlaid(&mut self) -> Result<()> {
        loop {
            let ranges = self.overlay.ranges(0, RANGES_MAX);
            if ranges.is_empty() {
                return Ok(());
            }
            for (offset, length_bytes) in ranges {
                self.range(offset, offset + length_bytes)?;
            }
        }
    }

    /// Copies what the view takes from undo.
    fn undone(&mut self, view: &PointView) -> Result<()> {
        let mut at = 0;
        loop {
            let ranges = changed_ranges(view.folder(), view.point(), Latest::Image, at, RANGES_MAX)?;
            let Some(&(last, length_bytes)) = ranges.last() else { return Ok(()) };
            for (offset, length_bytes) in ranges {
                self.range(offset, offset + length_bytes)?;
            }
            at = last + length_bytes;
        }
    }

    fn range(&mut self, offset: u64, end: u64) -> Result<()> {
        let end = end.min(self.overlay.size_bytes()).div_ceil(BLOCK_BYTES);
        let mut at = offset / BLOCK_BYTES;
        while at < end {
            if self.work.stop.load(Ordering::Relaxed) {
                return Err(DiskError::Stopped(Place::whole(self.overlay.path())));
            }
            let stop = end.min(at + PIECE_BLOCKS);
            self.piece(at, stop)?;
            at = stop;
        }
        Ok(())
    }

    /// Settles blocks that are not.
    fn piece(&mut self, first: u64, end: u64) -> Result<()> {
        let _held = self.overlay.lock.hold(first..end);
        let mut at = first;
        while at < end {
            let (state, stop) = self.overlay.map.run(at, end);
            if state != Block::Settled {
                self.copy(at, stop)?;
                self.overlay.map.set(at..stop, Block::Settled)?;
                self.note(state, at..stop);
            }
            at = stop;
        }
        if self.count * BLOCK_BYTES >= self.overlay.settle_flush_bytes { self.flush() } else { Ok(()) }
    }

    fn copy(&self, first: u64, stop: u64) -> Result<()> {
        let (mut at, end) = self.overlay.bytes_of(first, stop);
        while at < end {
            let extent = self.overlay.extent_at(at, end)?;
            match extent.kind {
                ExtentKind::Hole => self.image.discard(at, extent.length_bytes)?,
                ExtentKind::Data => {
                    let mut bytes = vec![0; extent.length_bytes as usize];
                    self.overlay.read_at(at, &mut bytes)?;
                    self.image.write_at(at, &bytes)?;
                    self.work.copied_bytes.fetch_add(extent.length_bytes, Ordering::Relaxed);
                }
            }
            at = extent.end();
        }
        Ok(())
    }

    fn note(&mut self, state: Block, blocks: Range<u64>) {
        let count = blocks.end - blocks.start;
        self.work.done_bytes.fetch_add(count * BLOCK_BYTES, Ordering::Relaxed);
        self.count += count;
        if state == Block::Present {
            self.copied.push(blocks);
        }
    }

    /// Makes what is settled durable, and gives back its data.
    fn flush(&mut self) -> Result<()> {
        self.overlay.flush()?;
        self.count = 0;
        let mut copied = std::mem::take(&mut self.copied).into_iter();
        let Some(mut back) = copied.next() else { return Ok(()) };
        for blocks in copied {
            if back.end <= blocks.start && self.holds_nothing(back.end..blocks.start) {
                back.end = blocks.end;
            } else {
                self.give_back(std::mem::replace(&mut back, blocks))?;
            }
        }
        self.give_back(back)
    }

    /// Whether the data of these blocks is nobody's: a call for each range of scattered writes would take most of the time.
    fn holds_nothing(&self, blocks: Range<u64>) -> bool {
        !self.overlay.map.has(blocks, Block::Present)
    }

    fn give_back(&self, blocks: Range<u64>) -> Result<()> {
        let (start, end) = self.overlay.bytes_of(blocks.start, blocks.end);
        self.overlay.data.discard(start, end - start)
    }
}
