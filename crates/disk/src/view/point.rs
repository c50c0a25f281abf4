//! A recovery point as a read-only disk: for each range the oldest undo entry since the point, else the image.
//!
//! Cycles may be applied to the image while a view is read, by this process or another. What they overwrite is in a segment
//! and the epoch has moved before the image is touched. So a read that found the image's bytes to be right by the
//! segments it knew looks at the epoch again afterwards; if it moved, it takes in the new segments and reads once more.
//! Segments stay readable through their open files when a merge has replaced them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use secondsite_hrl::{Entry, Operation, Place as FilePlace};

use crate::device::{BlockDevice, Extent, ExtentKind, check_range};
use crate::error::{DiskError, Place, Result};
use crate::tracked::Random;
use crate::undo::{Epoch, Lookup, Pin, Segment, UndoFolder};

/// Times that a view begins again because the folder moved under it, before it gives up.
const RELOADS_MAX: usize = 10_000;

/// How to open a view.
#[derive(Clone)]
pub struct ViewOptions {
    /// Sequence number of the point.
    pub point: u64,
    /// Size of the disk at the point, which may be smaller or larger than the image is; `None` when it is the same.
    pub size_bytes: Option<u64>,
    /// Names the pin.
    pub random: Random,
}

/// A recovery point, open for reading; it is pinned as long as the view lives.
pub struct PointView {
    image: Arc<dyn BlockDevice>,
    folder: UndoFolder,
    epoch: Epoch,
    point: u64,
    size_bytes: u64,
    path: PathBuf,
    known: RwLock<Arc<Known>>,
    pin: Pin,
}

/// The segments that lead back to the point, oldest first, as of an epoch.
struct Known {
    epoch: u64,
    segments: Vec<Arc<Segment>>,
}

/// What holds a range.
enum Source<'k> {
    Segment(&'k Segment, u64, Entry),
    Image,
}

impl PointView {
    /// Opens a point of the undo folder `folder` of `image`. The folder is made when nothing was ever saved.
    ///
    /// Whether the point exists is for the caller to know, who looks it up **after** this has pinned it.
    ///
    /// # Errors
    /// UNDO_DAMAGED with file, offset and reason; ACCESS_DENIED, DISK_READ_FAILED, LOG_READ_FAILED.
    pub fn open(folder: &Path, image: Arc<dyn BlockDevice>, options: &ViewOptions) -> Result<Self> {
        let size_bytes = options.size_bytes.unwrap_or_else(|| image.size_bytes());
        let folder = UndoFolder::create(folder)?;
        let pin = Pin::take(&folder.path, options.point, &options.random)?;
        let epoch = folder.epoch()?;
        let known = load(&folder, &epoch, options.point, &[])?;
        Ok(Self {
            path: image.path().to_path_buf(),
            image,
            folder,
            epoch,
            point: options.point,
            size_bytes,
            known: RwLock::new(Arc::new(known)),
            pin,
        })
    }

    /// Sequence number of the point.
    pub fn point(&self) -> u64 {
        self.point
    }

    /// Refuses when there is another view of the same replica.
    pub(crate) fn refuse_if_shared(&self) -> Result<()> {
        if self.pin.has_company()? {
            return Err(DiskError::Busy(
                Place::whole(self.folder()),
                "recovery points are being read".into(),
            ));
        }
        Ok(())
    }

    pub(crate) fn image(&self) -> &Arc<dyn BlockDevice> {
        &self.image
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// Carries out `read` with segments and image that belong together.
    fn consistently<T>(&self, mut read: impl FnMut(&Known) -> Result<T>) -> Result<T> {
        for _ in 0..RELOADS_MAX {
            let known = self.current()?;
            let result = read(&known);
            if self.epoch.value()? == known.epoch {
                return result;
            }
        }
        Err(DiskError::Busy(Place::whole(&self.folder.path), "it changes without end".into()))
    }

    /// Reads what no segment holds. What an image that has shrunk lost was saved before.
    fn read_image(&self, at: u64, part: &mut [u8]) -> Result<()> {
        if at + part.len() as u64 > self.image.size_bytes() {
            let reason = "what the image had here before it shrank was not saved".to_owned();
            let place = FilePlace { path: self.folder.path.clone(), offset: at, reason };
            return Err(DiskError::UndoDamaged(place));
        }
        self.image.read_at(at, part)
    }

    /// The segments as of now.
    fn current(&self) -> Result<Arc<Known>> {
        let epoch = self.epoch.value()?;
        let known = self.known.read().clone();
        if known.epoch == epoch {
            return Ok(known);
        }
        let mut known = self.known.write();
        if known.epoch != epoch {
            *known = Arc::new(load(&self.folder, &self.epoch, self.point, &known.segments)?);
        }
        Ok(known.clone())
    }
}

/// Opens the segments since a point, those in `opened` excepted.
fn load(folder: &UndoFolder, epoch: &Epoch, point: u64, opened: &[Arc<Segment>]) -> Result<Known> {
    for _ in 0..RELOADS_MAX {
        let listing = folder.list(epoch)?;
        if let Some(gap) = listing.gaps.iter().find(|gap| gap.concerns(point)) {
            return Err(gap.damage(&folder.path));
        }
        let segments = listing.since(point).into_iter().map(|name| {
            let held = opened.iter().find(|segment| segment.name == name);
            held.map_or_else(|| Segment::open(&folder.path, name).map(Arc::new), |held| Ok(held.clone()))
        });
        let segments: Result<Vec<_>> = segments.collect();
        // Files that went while they were opened, after others took their place, are no damage.
        if segments.is_ok() || epoch.value()? == listing.epoch {
            return Ok(Known { epoch: listing.epoch, segments: segments? });
        }
    }
    Err(DiskError::Busy(Place::whole(&folder.path), "it changes without end".into()))
}

impl Known {
    fn lookups(&self) -> Vec<Lookup<'_>> {
        self.segments.iter().map(|segment| Lookup::new(segment)).collect()
    }
}

/// What holds the range that begins at `at`, and where it ends, at most at `end`.
fn source_at<'k>(lookups: &mut [Lookup<'k>], at: u64, end: u64) -> Result<(Source<'k>, u64)> {
    let mut end = end;
    for lookup in lookups {
        let Some((number, entry)) = lookup.ending_after(at)? else { continue };
        if entry.offset <= at {
            return Ok((Source::Segment(lookup.segment(), number, entry), end.min(entry.end())));
        }
        end = end.min(entry.offset); // What is older wins where it begins.
    }
    Ok((Source::Image, end))
}

impl BlockDevice for PointView {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_size_bytes(&self) -> u32 {
        self.image.sector_size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        self.consistently(|known| {
            let mut lookups = known.lookups();
            let (mut at, end) = (offset, offset + buffer.len() as u64);
            while at < end {
                let (source, stop) = source_at(&mut lookups, at, end)?;
                let part = &mut buffer[(at - offset) as usize..(stop - offset) as usize];
                match source {
                    Source::Segment(segment, number, entry) => segment.read(number, &entry, at, part)?,
                    Source::Image => self.read_image(at, part)?,
                }
                at = stop;
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        Err(DiskError::ReadOnly(Place::new(&self.path, offset, data.len() as u64)))
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64, _may_unmap: bool) -> Result<()> {
        Err(DiskError::ReadOnly(Place::new(&self.path, offset, length_bytes)))
    }

    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        Err(DiskError::ReadOnly(Place::new(&self.path, offset, length_bytes)))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        let end = end.min(self.size_bytes);
        self.consistently(|known| {
            let (source, stop) = source_at(&mut known.lookups(), offset, end)?;
            let kind = match source {
                Source::Image => return self.image.extent_at(offset, stop),
                Source::Segment(_, _, entry) if entry.operation == Operation::Write => ExtentKind::Data,
                Source::Segment(..) => ExtentKind::Hole,
            };
            Ok(Extent { offset, length_bytes: stop - offset, kind })
        })
    }
}
