//! A disk that grows under the tracked disk: only the new range is new, whenever the process dies or the power goes.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod resize_common;
mod tracked_common;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resize_common::{End, World, end_before_every_step};
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::tracked::{CHUNK_BYTES, REGION_BYTES};
use secondsite_disk::{
    Access, BlockDevice, FileDevice, Mode, Recovery, ResyncReason, TrackFiles, TrackOptions, cut,
};
use secondsite_hrl::LogFile;
use tracked_common::options;

const OLD_BYTES: u64 = 3 * REGION_BYTES + 512;
/// More sectors of every map than before.
const NEW_BYTES: u64 = 5000 * REGION_BYTES;

fn put(world: &World, offset: u64, data: &[u8]) {
    OpenOptions::new().write(true).open(&world.path).unwrap().write_all_at(data, offset).unwrap();
}

fn at(disk: &dyn BlockDevice, offset: u64) -> u8 {
    let mut sector = [0; 512];
    disk.read_at(offset, &mut sector).unwrap();
    sector[0]
}

#[test]
fn a_grown_disk_is_usable_at_once_and_owes_nothing() {
    let world = World::new(OLD_BYTES);
    let disk = world.open(world.options("boot", 1)).unwrap().0;
    disk.write_at(OLD_BYTES - 512, &[1; 512]).unwrap();
    world.resize(NEW_BYTES);
    assert_eq!(disk.size_bytes(), OLD_BYTES, "nobody has noticed yet");
    assert_eq!(disk.write_at(OLD_BYTES, &[2; 512]).unwrap_err().code(), "DISK_OUT_OF_RANGE");
    assert_eq!(disk.grow().unwrap(), NEW_BYTES);
    assert_eq!(disk.grow().unwrap(), NEW_BYTES, "a second look finds nothing");
    disk.write_at(NEW_BYTES - 512, &[2; 512]).unwrap();
    let status = disk.status();
    assert_eq!((status.mode, status.resync_reason, status.changed_bytes), (Mode::Logging, None, 0));
    assert_eq!(disk.dirty(OLD_BYTES + CHUNK_BYTES, NEW_BYTES), [(NEW_BYTES - CHUNK_BYTES, CHUNK_BYTES)]);
    cut(std::slice::from_ref(&disk)).unwrap();
    assert_eq!(disk.unreleased_logs()[0].sealed.entry_count, 2, "one log over the growth");
    drop(disk);
    let (disk, opened) = world.open(options(&world.files, "boot", 2)).unwrap();
    assert_eq!((opened.recovery, disk.size_bytes()), (Recovery::ProcessDeath, NEW_BYTES));
    assert_eq!((disk.status().resync_reason, at(disk.as_ref(), NEW_BYTES - 512)), (None, 2));
    disk.close().unwrap();
    drop(disk);
    let again = world.open(options(&world.files, "boot", 3)).unwrap().0;
    assert_eq!(again.status().resync_reason, None);
}

#[test]
fn what_stands_behind_the_old_end_is_compared_and_nothing_else() {
    let world = World::new(OLD_BYTES);
    let disk = world.open(world.options("boot", 1)).unwrap().0;
    world.resize(OLD_BYTES + REGION_BYTES);
    put(&world, OLD_BYTES + 8192, &[7; 512]);
    disk.grow().unwrap();
    assert!(disk.status().resync_reason.is_some());
    disk.begin_resync().unwrap();
    let start = OLD_BYTES / CHUNK_BYTES * CHUNK_BYTES;
    assert_eq!(disk.candidates(0, NEW_BYTES), [(start, OLD_BYTES + REGION_BYTES - start)]);
}

#[test]
fn a_disk_that_shrinks_is_refused_and_stays_as_it_was() {
    let world = World::new(OLD_BYTES);
    let disk = world.open(world.options("boot", 1)).unwrap().0;
    world.resize(OLD_BYTES - 512);
    assert_eq!(disk.grow().unwrap_err().code(), "DISK_SIZE_DIFFERS");
    assert_eq!(disk.size_bytes(), OLD_BYTES);
    drop(disk);
    let refused = world.open(world.options("boot", 2)).err().unwrap();
    assert_eq!(refused.code(), "DISK_SIZE_DIFFERS");
    world.resize(OLD_BYTES + 100);
    let refused = FileDevice::open(&world.path, Access::ReadWrite).unwrap_err();
    assert_eq!(refused.code(), "DISK_SIZE_UNALIGNED");
}

#[test]
fn a_larger_disk_is_refused_at_its_opening_unless_growth_is_accepted() {
    let world = World::new(OLD_BYTES);
    drop(world.open(world.options("boot", 1)).unwrap());
    world.resize(NEW_BYTES);
    assert_eq!(world.open(options(&world.files, "boot", 2)).err().unwrap().code(), "DISK_SIZE_DIFFERS");
    let disk = world.open(world.options("boot", 3)).unwrap().0;
    assert_eq!((disk.size_bytes(), disk.status().resync_reason), (NEW_BYTES, None));
}

#[test]
fn without_space_for_the_larger_maps_the_disk_goes_on_as_it_was() {
    let world = World::new(OLD_BYTES);
    let disk = world.open(world.options("boot", 1)).unwrap().0;
    world.resize(NEW_BYTES);
    world.files.set_full(true);
    assert_eq!(disk.grow().unwrap_err().code(), "LOG_WRITE_FAILED");
    assert_eq!(disk.size_bytes(), OLD_BYTES);
    world.files.set_full(false);
    disk.write_at(0, &[3; 512]).unwrap();
    assert_eq!(disk.grow().unwrap(), NEW_BYTES, "later there is");
    assert_eq!((disk.status().mode, at(disk.as_ref(), 0)), (Mode::Logging, 3));
}

/// A folder whose names cannot be made durable at times.
struct FailingFolder(Arc<MemoryTrackFiles>, AtomicBool);

impl TrackFiles for FailingFolder {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.0.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.0.open(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.0.names(folder)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.0.sync_folder(folder),
        }
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.0.lock(path)
    }
}

/// The power may bring the old file back, which is not kept up to date any more.
#[test]
fn a_tracking_file_that_was_replaced_is_not_believed_when_it_comes_back() {
    for seed in 0..8 {
        let mut world = World::new(OLD_BYTES);
        let files = Arc::new(FailingFolder(world.files.clone(), AtomicBool::new(false)));
        let disk = world.open(TrackOptions { files: files.clone(), ..world.options("one", 1) }).unwrap().0;
        world.resize(NEW_BYTES);
        files.1.store(true, Ordering::Relaxed);
        disk.grow().unwrap();
        disk.require_resync_of(ResyncReason::AskedFor, &[(0, CHUNK_BYTES)]).unwrap();
        drop(disk);
        world.files = Arc::new(world.files.lose_power(seed));
        let disk = world.open(world.options("two", 3)).unwrap().0;
        assert!(disk.status().changed_bytes > 0, "seed {seed}: what was owed is forgotten");
    }
}

#[test]
fn an_unfinished_tracking_file_that_a_death_has_left_goes_with_the_next_open() {
    let world = World::new(OLD_BYTES);
    let disk = world.open(world.options("boot", 1)).unwrap().0;
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    drop(disk);
    let left = Path::new("/track/d.raw.hrt.new");
    world.files.create(left).unwrap().write_all_at(&mut [io::IoSlice::new(&[0xff; 8192])], 0).unwrap();
    let disk = world.open(world.options("boot", 2)).unwrap().0;
    assert_eq!((at(disk.as_ref(), 0), disk.status().resync_reason), (1, None));
    assert!(!world.files.paths().contains(&left.to_path_buf()), "{:?}", world.files.paths());
}

#[test]
fn a_death_or_a_power_loss_at_any_step_of_growing_loses_no_write() {
    end_before_every_step(
        OLD_BYTES,
        |world, options, acknowledged| {
            let disk = world.open(options).unwrap().0;
            disk.write_at(0, &[1; 512]).unwrap();
            disk.flush().unwrap();
            acknowledged.store(1, Ordering::Relaxed);
            world.resize(NEW_BYTES);
            disk.grow().unwrap();
            disk.write_at(NEW_BYTES - 512, &[2; 512]).unwrap();
            disk.flush().unwrap();
            acknowledged.store(2, Ordering::Relaxed);
        },
        World::options,
        |_, disk, &End { is_power_loss, fatal, acknowledged }| {
            let status = disk.status();
            if !is_power_loss {
                assert_eq!(status.resync_reason, None, "step {fatal}");
            }
            if acknowledged >= 1 {
                let known = (status.mode, status.is_whole_disk_unknown);
                assert_eq!(known, (Mode::Logging, false), "step {fatal}");
                assert_eq!(at(disk.as_ref(), 0), 1);
            }
            if acknowledged == 2 {
                assert_eq!((disk.size_bytes(), at(disk.as_ref(), NEW_BYTES - 512)), (NEW_BYTES, 2));
                // The write of the new range is in a log, or its region is to be compared.
                cut(std::slice::from_ref(disk)).unwrap();
                let is_dirty = !disk.dirty(NEW_BYTES - CHUNK_BYTES, CHUNK_BYTES).is_empty();
                assert!(is_dirty, "step {fatal}");
            }
        },
    );
}
