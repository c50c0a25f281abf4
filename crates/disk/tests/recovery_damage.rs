//! Damage of undo: whatever byte of a segment is flipped, whichever file is taken away, the points after it stay readable,
//! and those up to it are either refused or read right, never wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod recovery_common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use recovery_common::{
    Change, GO_ON, Random, bytes_of, first_difference, log_of, open_view, undo_options, view_options,
};
use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::{
    Access, BlockDevice, DiskError, FileDevice, Latest, MergeReport, PointView, ViewOptions, Work,
    apply_logs, changed_ranges, differing_ranges, drop_points_before, materialize, merge_point, save_undo,
    save_undo_ranges, undo_summary,
};
use secondsite_hrl::LogReader;
use secondsite_hrl::faults::rules::{FaultRule, FileOperation, arm, disarm};

const SECTORS: u64 = 96;
const SIZE: u64 = SECTORS * 512;

struct Replica {
    folder: tempfile::TempDir,
    image: Arc<dyn BlockDevice>,
    points: Vec<Vec<u8>>,
}

/// Three points, 1 to 3, each with a segment of its own.
fn replica(seed: u64) -> Replica {
    let mut random = Random(seed);
    replica_of(0, |_| (0..6).map(|_| Change::any(&mut random, SECTORS, 12)).collect())
}

/// Three points whose segments hold data and have no range in common.
fn apart() -> Replica {
    replica_of(7, |point| {
        vec![Change { operation: 2, offset: point * 8192, length_bytes: 4096, fill: point as u8 }]
    })
}

fn replica_of(fill: u8, mut changes: impl FnMut(u64) -> Vec<Change>) -> Replica {
    let (folder, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("image", SIZE));
    image.write_at(0, &[fill; SIZE as usize]).unwrap();
    let mut points = Vec::new();
    for point in 1..=3 {
        points.push(bytes_of(&*image));
        let log = log_of(logs.path(), &changes(point));
        save_undo(&*image, &[&log], folder.path(), point, &undo_options(), &GO_ON).unwrap();
        apply_logs(&*image, &[&log], false, &GO_ON).unwrap();
    }
    Replica { folder, image, points }
}

impl Replica {
    fn segment(&self, point: u64) -> PathBuf {
        self.folder.path().join(format!("{point:012}.{0:09}-{0:09}.hrl", point - 1))
    }

    /// What reading a point gives: its bytes, or a refusal.
    fn read(&self, point: u64) -> Result<Vec<u8>, DiskError> {
        let view = open_view(self.folder.path(), &self.image, point)?;
        let mut bytes = vec![0; SIZE as usize];
        for (index, piece) in bytes.chunks_mut(4096).enumerate() {
            view.read_at(index as u64 * 4096, piece)?;
        }
        Ok(bytes)
    }

    /// Points up to `damaged` are right or refused; those behind it are right.
    fn check(&self, damaged: u64, what: &str) {
        for point in 1..=3 {
            match self.read(point) {
                Ok(bytes) => {
                    let found = first_difference(&bytes, &self.points[point as usize - 1]);
                    assert_eq!(found, None, "{what}: point {point} reads wrong bytes");
                }
                Err(error) => {
                    assert_eq!(error.code(), "UNDO_DAMAGED", "{what}: {error}");
                    assert!(point <= damaged, "{what}: point {point} is refused: {error}");
                }
            }
        }
    }
}

#[test]
fn any_flipped_byte_is_found_named_and_spoils_only_points_up_to_its_own() {
    for seed in [1] {
        let replica = replica(seed);
        for point in 1..=3 {
            for path in [replica.segment(point), replica.segment(point).with_extension("hrx")] {
                let content = fs::read(&path).unwrap();
                for at in (0..content.len()).step_by(101) {
                    let mut bad = content.clone();
                    bad[at] ^= 0x10;
                    fs::write(&path, bad).unwrap();
                    let what = format!("seed {seed}, {}, byte {at}", path.display());
                    let damage = undo_summary(replica.folder.path(), true).unwrap().damage;
                    assert_eq!(damage.len(), 1, "{what}: {damage:?}");
                    assert_eq!(damage[0].through_point, Some(point), "{what}");
                    assert_eq!(damage[0].path.with_extension(""), path.with_extension(""), "{what}");
                    replica.check(point, &what);
                }
                fs::write(&path, content).unwrap();
            }
        }
        replica.check(0, "whole again");
    }
}

#[test]
fn a_cut_segment_or_one_without_its_index_is_refused_when_the_point_is_opened() {
    let replica = replica(3);
    for path in [replica.segment(2), replica.segment(2).with_extension("hrx")] {
        let content = fs::read(&path).unwrap();
        fs::write(&path, &content[..content.len() - 1]).unwrap();
        assert_refused(&replica, 2, &path);
        fs::write(&path, content).unwrap();
    }
    fs::remove_file(replica.segment(2).with_extension("hrx")).unwrap();
    assert_refused(&replica, 2, &replica.segment(2));
}

/// Flips the first byte of data in a segment.
fn damage_data(path: &Path) {
    let log = LogReader::open(path).unwrap();
    let mut entries = Vec::new();
    log.read_entries(0, 100, &mut entries).unwrap();
    let entry = entries.iter().find(|entry| entry.data_bytes() > 0).expect("some data");
    let mut content = fs::read(path).unwrap();
    content[entry.log_offset as usize] ^= 1;
    fs::write(path, content).unwrap();
}

fn assert_refused(replica: &Replica, point: u64, path: &Path) {
    for older in 1..=point {
        let refused = open_view(replica.folder.path(), &replica.image, older).err().expect("a refusal");
        assert_eq!(refused.code(), "UNDO_DAMAGED", "{}: {refused}", path.display());
    }
    replica.check(point, &path.display().to_string());
    assert_eq!(undo_summary(replica.folder.path(), false).unwrap().damage.len(), 1);
}

#[test]
fn each_segment_that_is_taken_away_is_missed() {
    for point in 1..=3 {
        let replica = replica(4);
        fs::remove_file(replica.segment(point)).unwrap();
        let refused = replica.read(1).unwrap_err();
        assert_eq!(refused.code(), "UNDO_DAMAGED", "segment of point {point}: {refused}");
        let refused = changed_ranges(replica.folder.path(), 1, Latest::Image, 0, 9).unwrap_err();
        assert_eq!(refused.code(), "UNDO_DAMAGED");
        let damage = undo_summary(replica.folder.path(), false).unwrap().damage;
        assert_eq!(damage.len(), 1, "{damage:?}");
        // The next segment tells up to where; after the last one nothing does.
        assert_eq!(damage[0].through_point, (point < 3).then_some(point + 1));
    }
}

#[test]
fn a_damaged_segment_is_not_merged_and_stays_for_the_one_who_looks_at_it() {
    let replica = apart();
    let path = replica.segment(2);
    damage_data(&path);
    let refused = merge_point(replica.folder.path(), 2, 1, &undo_options(), &GO_ON).unwrap_err();
    assert_eq!(refused.code(), "UNDO_DAMAGED");
    assert!(path.exists() && !replica.folder.path().join("merge.unfinished.hrl").exists());
    replica.check(2, "not merged");
}

#[test]
fn a_lost_epoch_file_costs_nothing() {
    let replica = replica(6);
    fs::remove_file(replica.folder.path().join("epoch")).unwrap();
    replica.check(0, "without epoch");
    let merged = merge_point(replica.folder.path(), 2, 1, &undo_options(), &GO_ON).unwrap();
    assert_eq!(merged, MergeReport { deleted_count: 1, ..merged });
    assert_eq!(replica.read(1).unwrap(), replica.points[0]);
}

#[test]
fn a_view_becomes_a_file_of_its_own_or_leaves_nothing() {
    let replica = apart();
    let view = open_view(replica.folder.path(), &replica.image, 2).unwrap();
    let out = replica.folder.path().join("out.raw");
    materialize(&view, &out, &Work::default()).unwrap();
    assert_eq!(fs::read(&out).unwrap(), replica.points[1]);
    assert_eq!(materialize(&view, &out, &Work::default()).unwrap_err().code(), "DISK_IN_USE");
    assert_eq!(fs::read(&out).unwrap(), replica.points[1], "what was there is not touched");
    fs::remove_file(&out).unwrap();
    damage_data(&replica.segment(3));
    let view = open_view(replica.folder.path(), &replica.image, 2).unwrap();
    assert_eq!(materialize(&view, &out, &Work::default()).unwrap_err().code(), "UNDO_DAMAGED");
    assert!(!out.exists());
}

#[test]
fn a_save_on_a_full_or_failing_disk_leaves_nothing_behind_and_is_done_again() {
    for (operation, errno, code) in [
        (FileOperation::Write, libc::ENOSPC, "LOG_WRITE_FAILED"),
        (FileOperation::Sync, libc::EIO, "LOG_WRITE_FAILED"),
        (FileOperation::Open, libc::ENOSPC, "LOG_WRITE_FAILED"),
    ] {
        for calls in 0..6 {
            let replica = replica(9);
            let logs = tempfile::tempdir().unwrap();
            let change = Change { operation: 2, offset: 0, length_bytes: SIZE, fill: 9 };
            let log = log_of(logs.path(), &[change]);
            let before = bytes_of(&*replica.image);
            let save =
                || save_undo(&*replica.image, &[&log], replica.folder.path(), 4, &undo_options(), &GO_ON);
            let armed =
                arm(FaultRule::new(replica.folder.path(), operation, errno).after_calls(calls)).unwrap();
            let failed = save();
            disarm(armed);
            if let Err(error) = failed {
                assert_eq!(error.code(), code, "{operation:?} {calls}: {error}");
                assert!(!replica.folder.path().join("save.unfinished.hrl").exists());
            }
            replica.check(0, "after a failed save");
            save().unwrap();
            apply_logs(&*replica.image, &[&log], false, &GO_ON).unwrap();
            replica.check(0, "after the save that was done again");
            assert_eq!(replica.read(4).unwrap(), before, "{operation:?} {calls}");
        }
    }
}

/// Fails the sync of a path alone, and not of what lies below it.
fn failing_sync(path: &Path, calls: u64) -> u32 {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    arm(FaultRule::new(path, FileOperation::Sync, libc::EIO).suffix(name).after_calls(calls)).unwrap()
}

#[test]
fn a_segment_whose_name_is_not_durable_is_none_and_takes_nobodys_place() {
    for calls in 0..2 {
        let replica = replica(9);
        let folder = replica.folder.path();
        let range = [(0, SIZE)];
        let save = || save_undo_ranges(&*replica.image, &range, folder, 4, &undo_options(), &GO_ON);
        let armed = failing_sync(folder, calls);
        let failed = (save(), merge_point(folder, 3, 2, &undo_options(), &GO_ON));
        disarm(armed);
        assert_eq!(failed.0.unwrap_err().code(), "LOG_WRITE_FAILED", "sync {calls}");
        assert_eq!(failed.1.unwrap_err().code(), "LOG_WRITE_FAILED", "sync {calls}");
        assert!(replica.segment(3).exists() && replica.segment(2).exists(), "sync {calls}");
        save().unwrap();
        replica.check(0, "after the save that was done again");
    }
}

/// Readers learn by the epoch that segments were replaced: a file that goes before is damage to them.
#[test]
fn no_segment_goes_before_the_epoch_has_moved() {
    let merge: fn(&Path) -> Result<MergeReport, DiskError> =
        |folder| merge_point(folder, 3, 2, &undo_options(), &GO_ON);
    let drop_oldest: fn(&Path) -> Result<MergeReport, DiskError> = |folder| drop_points_before(folder, 2);
    for (gone, kept, step) in [(3, 1..=2, merge), (1, 2..=3, drop_oldest)] {
        let replica = apart();
        let epoch = replica.folder.path().join("epoch");
        let content = fs::read(&epoch).unwrap();
        fs::remove_file(&epoch).unwrap();
        std::os::unix::fs::symlink("/dev/full", &epoch).unwrap();
        assert_eq!(step(replica.folder.path()).unwrap_err().code(), "DISK_FULL");
        assert!(replica.segment(gone).exists(), "the segment of point {gone} has gone");
        fs::remove_file(&epoch).unwrap();
        fs::write(&epoch, content).unwrap();
        step(replica.folder.path()).unwrap();
        assert!(!replica.segment(gone).exists());
        kept.for_each(|point| assert_eq!(replica.read(point).unwrap(), replica.points[point as usize - 1]));
    }
}

#[test]
fn a_drop_that_is_not_durable_deletes_nothing() {
    let replica = apart();
    let armed = failing_sync(&replica.folder.path().join("epoch"), 0);
    let failed = drop_points_before(replica.folder.path(), 2);
    disarm(armed);
    assert_eq!(failed.unwrap_err().code(), "DISK_SYNC_FAILED");
    assert!(replica.segment(1).exists());
    drop_points_before(replica.folder.path(), 2).unwrap();
    assert!(!replica.segment(1).exists());
}

#[test]
fn a_disk_that_has_grown_since_a_point_is_seen_as_large_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.raw");
    let undo = folder.path().join("undo");
    drop(FileDevice::create(&path, SIZE).unwrap());
    let write = |point, offset, fill| {
        let image = FileDevice::open(&path, Access::ReadWrite).unwrap();
        save_undo_ranges(&image, &[(offset, 8192)], &undo, point, &undo_options(), &GO_ON).unwrap();
        image.write_at(offset, &[fill; 8192]).unwrap();
    };
    write(1, 0, 1);
    let mut point_2 = vec![0; SIZE as usize];
    point_2[..8192].fill(1);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 * SIZE).unwrap();
    write(2, SIZE - 4096, 2); // Over the old end.
    write(2, 2 * SIZE - 8192, 3);
    let image: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&path, Access::ReadOnly).unwrap());
    let then = ViewOptions { size_bytes: Some(SIZE), ..view_options(2) };
    let view = PointView::open(&undo, image.clone(), &then).unwrap();
    assert_eq!(first_difference(&bytes_of(&view), &point_2), None);
    assert_eq!(view.read_at(SIZE, &mut [0; 512]).unwrap_err().code(), "DISK_OUT_OF_RANGE");
    assert_eq!(view.write_at(0, &[0; 512]).unwrap_err().code(), "DISK_READ_ONLY");
    let out = folder.path().join("out.raw");
    materialize(&view, &out, &Work::default()).unwrap();
    assert_eq!(first_difference(&fs::read(&out).unwrap(), &point_2), None);
    let whole = PointView::open(&undo, image.clone(), &view_options(2)).unwrap();
    point_2.resize(2 * SIZE as usize, 0);
    assert_eq!(first_difference(&bytes_of(&whole), &point_2), None, "as large as it is now");
    let larger = ViewOptions { size_bytes: Some(3 * SIZE), ..view_options(2) };
    let lost = PointView::open(&undo, image, &larger).unwrap();
    assert_eq!(lost.read_at(2 * SIZE, &mut [0; 512]).unwrap_err().code(), "UNDO_DAMAGED");
}

#[test]
fn a_point_before_the_image_shrank_keeps_its_size_and_its_bytes_also_when_it_grows_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, undo) = (folder.path().join("image.raw"), folder.path().join("undo"));
    drop(FileDevice::create(&path, 2 * SIZE).unwrap());
    let open = |access| -> Arc<dyn BlockDevice> { Arc::new(FileDevice::open(&path, access).unwrap()) };
    let resize = |bytes| std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    let writable = open(Access::ReadWrite);
    writable.write_at(SIZE - 8192, &[1; 16384]).unwrap();
    writable.write_at(2 * SIZE - 4096, &[2; 4096]).unwrap();
    let mut point_1 = vec![0; 2 * SIZE as usize];
    point_1[SIZE as usize - 8192..][..16384].fill(1);
    point_1[2 * SIZE as usize - 4096..].fill(2);
    let then = ViewOptions { size_bytes: Some(2 * SIZE), ..view_options(1) };
    let opened_before = PointView::open(&undo, open(Access::ReadOnly), &then).unwrap();
    // A sector behind a multiple of the unit that is saved.
    let end = SIZE + 512;
    save_undo_ranges(&*writable, &[(end, 2 * SIZE - end)], &undo, 1, &undo_options(), &GO_ON).unwrap();
    resize(end);
    assert_eq!(first_difference(&bytes_of(&opened_before), &point_1), None, "opened before");
    let opened_after = PointView::open(&undo, open(Access::ReadOnly), &then).unwrap();
    assert_eq!(first_difference(&bytes_of(&opened_after), &point_1), None, "opened after");
    let out = folder.path().join("out.raw");
    materialize(&opened_after, &out, &Work::default()).unwrap();
    assert_eq!(first_difference(&fs::read(&out).unwrap(), &point_1), None, "written out");
    resize(2 * SIZE);
    save_undo_ranges(&*open(Access::ReadOnly), &[(2 * SIZE - 4096, 4096)], &undo, 2, &undo_options(), &GO_ON)
        .unwrap();
    open(Access::ReadWrite).write_at(2 * SIZE - 4096, &[3; 4096]).unwrap();
    let grown_again = PointView::open(&undo, open(Access::ReadOnly), &then).unwrap();
    assert_eq!(first_difference(&bytes_of(&grown_again), &point_1), None, "grown again");
}

#[test]
fn of_ranges_that_were_overwritten_those_with_other_bytes_are_told_apart() {
    let image: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("image", SIZE));
    image.write_at(0, &[5; 16384]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_undo_ranges(&*image, &[(0, 16384), (32768, 4096)], folder.path(), 1, &undo_options(), &GO_ON)
        .unwrap();
    image.write_at(0, &[5; 8192]).unwrap(); // The same again.
    image.write_at(8192, &[6; 512]).unwrap();
    image.write_at(32768, &[7; 4096]).unwrap();
    let view = open_view(folder.path(), &image, 1).unwrap();
    let ranges = changed_ranges(folder.path(), 1, Latest::Image, 0, 10).unwrap();
    assert_eq!(ranges, [(0, 16384), (32768, 4096)]);
    let differing = differing_ranges(&view, &*image, &ranges, &GO_ON).unwrap();
    assert_eq!(differing, [(8192, 4096), (32768, 4096)]);
}
