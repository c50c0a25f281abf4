//! A disk that shrinks under the tracked disk: refused unless that size was accepted; then nothing is known, written or
//! redone behind its end, whenever the process dies or the power goes.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod resize_common;
mod tracked_common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resize_common::{End, World, end_before_every_step};
use secondsite_disk::tracked::{CHUNK_BYTES, REGION_BYTES};
use secondsite_disk::{BlockDevice, Mode, Recovery, ResyncReason, TrackOptions, TrackedDisk, cut};
use secondsite_hrl::faults::rules::{FaultRule, FileOperation, arm, disarm};

/// More sectors of every map than afterwards.
const OLD_BYTES: u64 = 5000 * REGION_BYTES;
/// In the middle of a chunk.
const NEW_BYTES: u64 = 3 * REGION_BYTES + 512;

fn accepting(world: &World, boot: &str, seed: u64) -> TrackOptions {
    TrackOptions { accepted_shrink_bytes: Some(NEW_BYTES), ..world.options(boot, seed) }
}

fn tracked(world: &World) -> Arc<TrackedDisk> {
    world.open(world.options("boot", 1)).unwrap().0
}

fn file_bytes(world: &World) -> u64 {
    std::fs::metadata(&world.path).unwrap().len()
}

fn at(world: &World, offset: u64) -> u8 {
    let mut byte = [0];
    std::fs::File::open(&world.path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

#[test]
fn a_shrink_that_was_accepted_ends_what_is_known_and_written_with_the_disk() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    disk.write_at(NEW_BYTES - 1024, &[1; 4096]).unwrap();
    disk.write_at(OLD_BYTES - 512, &[2; 512]).unwrap();
    world.resize(NEW_BYTES);
    disk.shrink(NEW_BYTES).unwrap();
    disk.shrink(NEW_BYTES).unwrap();
    assert_eq!(disk.size_bytes(), NEW_BYTES);
    let refused = [disk.write_at(NEW_BYTES, &[3; 512]), disk.discard(OLD_BYTES - 4096, 4096)];
    refused.into_iter().for_each(|one| assert_eq!(one.unwrap_err().code(), "DISK_OUT_OF_RANGE"));
    assert_eq!(disk.read_at(NEW_BYTES, &mut [0; 512]).unwrap_err().code(), "DISK_OUT_OF_RANGE");
    disk.write_at(NEW_BYTES - 512, &[4; 512]).unwrap();
    let status = disk.status();
    assert_eq!((status.mode, status.resync_reason, status.changed_bytes), (Mode::Logging, None, 0));
    let last_chunk = NEW_BYTES / CHUNK_BYTES * CHUNK_BYTES;
    assert_eq!(disk.dirty(last_chunk, OLD_BYTES), [(last_chunk, NEW_BYTES - last_chunk)]);
    assert_eq!(disk.dirty(NEW_BYTES, OLD_BYTES), []);
    cut(std::slice::from_ref(&disk)).unwrap();
    assert_eq!(disk.unreleased_logs()[0].sealed.entry_count, 3, "the log goes on over the shrink");
    assert_eq!(file_bytes(&world), NEW_BYTES, "nothing made the file longer");
}

#[test]
fn no_other_size_is_taken_and_a_larger_disk_is_no_shrink() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    let code = |size_bytes| disk.shrink(size_bytes).unwrap_err().code();
    assert_eq!(code(NEW_BYTES), "DISK_SIZE_DIFFERS", "it has not shrunk");
    disk.shrink(OLD_BYTES).unwrap();
    world.resize(NEW_BYTES - 512);
    assert_eq!(code(NEW_BYTES), "DISK_SIZE_DIFFERS", "it is smaller than that");
    world.resize(OLD_BYTES + 512);
    assert_eq!(code(OLD_BYTES + 512), "DISK_SIZE_DIFFERS", "it has grown");
    assert_eq!(disk.size_bytes(), OLD_BYTES);
}

#[test]
fn maps_of_a_larger_disk_are_never_written_into_those_behind_them() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    // Chunks behind the new end in every map: in the log, changed, and a candidate.
    disk.require_resync_of(ResyncReason::AskedFor, &[(OLD_BYTES - CHUNK_BYTES, CHUNK_BYTES)]).unwrap();
    disk.begin_resync().unwrap();
    disk.require_resync_of(ResyncReason::AskedFor, &[(OLD_BYTES / 2, CHUNK_BYTES), (0, 512)]).unwrap();
    disk.write_at(OLD_BYTES - 4096, &[1; 4096]).unwrap();
    // In the second sector of the changed map, where that of the candidates stands afterwards.
    disk.write_at(5000 * CHUNK_BYTES, &[1; 4096]).unwrap();
    disk.write_at(REGION_BYTES, &[1; 4096]).unwrap();
    world.resize(NEW_BYTES);
    disk.shrink(NEW_BYTES).unwrap();
    assert_eq!(disk.candidates(0, OLD_BYTES), []);
    disk.fold_logs_to_map(ResyncReason::LogThreshold).unwrap();
    drop(disk);
    let (disk, opened) = world.open(world.options("boot", 2)).unwrap();
    assert_eq!((opened.recovery, disk.size_bytes()), (Recovery::ProcessDeath, NEW_BYTES));
    assert!(!disk.status().is_whole_disk_unknown, "the tracking file is whole");
    disk.begin_resync().unwrap();
    assert_eq!(disk.candidates(0, OLD_BYTES), [(0, CHUNK_BYTES), (REGION_BYTES, CHUNK_BYTES)]);
}

#[test]
fn what_is_redone_ends_with_the_disk_and_owes_nothing() {
    for boot in ["boot", "another boot"] {
        let world = World::new(OLD_BYTES);
        let disk = tracked(&world);
        disk.write_at(NEW_BYTES - 512, &[1; 1024]).unwrap();
        disk.write_at(OLD_BYTES - 512, &[2; 512]).unwrap();
        disk.write_zeroes(NEW_BYTES - 1024, 8192, false).unwrap();
        disk.write_at(NEW_BYTES - 512, &[5; 1024]).unwrap();
        world.resize(NEW_BYTES);
        disk.shrink(NEW_BYTES).unwrap();
        drop(disk);
        // As if the last writes had not reached the disk.
        OpenOptions::new()
            .write(true)
            .open(&world.path)
            .unwrap()
            .write_all_at(&[9; 512], NEW_BYTES - 512)
            .unwrap();
        let disk = world.open(world.options(boot, 2)).unwrap().0;
        assert_eq!(file_bytes(&world), NEW_BYTES, "{boot}: no redo made the file longer");
        let reason = disk.status().resync_reason;
        assert!(matches!(reason, None | Some(ResyncReason::PowerLoss)), "{boot}: {reason:?}");
        if boot == "boot" {
            assert_eq!((at(&world, NEW_BYTES - 512), reason), (5, None));
        }
    }
}

#[test]
fn one_that_is_found_at_an_open_is_refused_unless_accepted_and_then_compared_as_a_whole() {
    for is_closed in [true, false] {
        let world = World::new(OLD_BYTES);
        let disk = tracked(&world);
        disk.write_at(0, &[1; 512]).unwrap();
        if is_closed {
            disk.close().unwrap();
        }
        drop(disk);
        world.resize(NEW_BYTES);
        let refused = world.open(world.options("boot", 2)).err().unwrap();
        assert_eq!(refused.code(), "DISK_SIZE_DIFFERS");
        let other = TrackOptions { accepted_shrink_bytes: Some(NEW_BYTES + 512), ..world.options("boot", 3) };
        assert_eq!(world.open(other).err().unwrap().code(), "DISK_SIZE_DIFFERS");
        let disk = world.open(accepting(&world, "boot", 4)).unwrap().0;
        let status = disk.status();
        assert_eq!(status.resync_reason, Some(ResyncReason::DiskModifiedOffline));
        assert!(status.is_whole_disk_unknown);
        assert_eq!(disk.size_bytes(), NEW_BYTES);
        drop(disk);
        let again = world.open(world.options("boot", 5)).unwrap().0;
        assert!(again.status().is_whole_disk_unknown, "it is not forgotten");
    }
}

#[test]
fn a_disk_whose_growth_is_put_off_is_tracked_to_its_old_end() {
    let world = World::new(OLD_BYTES);
    drop(tracked(&world));
    world.resize(OLD_BYTES + REGION_BYTES);
    let put_off = TrackOptions { is_growth_deferred: true, ..world.options("boot", 2) };
    let disk = world.open(put_off).unwrap().0;
    assert_eq!(disk.size_bytes(), OLD_BYTES);
    assert_eq!(disk.write_at(OLD_BYTES, &[1; 512]).unwrap_err().code(), "DISK_OUT_OF_RANGE");
    assert_eq!(disk.grow().unwrap(), OLD_BYTES + REGION_BYTES);
    assert_eq!(disk.status().resync_reason, None);
}

/// Writers that were checked against the old size must not make the file longer once the shrink has been accepted.
#[test]
fn writes_that_are_on_their_way_never_reach_behind_the_new_end() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    let (is_shrunk, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for n in 0..3u8 {
            let (disk, is_done) = (&disk, &is_done);
            scope.spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    // One inside, and one that reaches over the end, in one batch.
                    let _ = disk.write_at(NEW_BYTES - 1024, &[n; 2048]);
                    disk.write_at(u64::from(n) * 4096, &[n; 512]).unwrap();
                }
            });
        }
        scope.spawn(|| {
            // A write between the two makes the file longer again: then that size is refused.
            while !is_shrunk.load(Ordering::Relaxed) {
                world.resize(NEW_BYTES);
                match disk.shrink(NEW_BYTES) {
                    Ok(()) => is_shrunk.store(true, Ordering::Relaxed),
                    Err(e) => assert_eq!(e.code(), "DISK_SIZE_DIFFERS"),
                }
            }
            for _ in 0..100 {
                assert_eq!(file_bytes(&world), NEW_BYTES);
                assert_eq!(
                    disk.write_at(NEW_BYTES - 512, &[7; 1024]).unwrap_err().code(),
                    "DISK_OUT_OF_RANGE"
                );
            }
            is_done.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(file_bytes(&world), NEW_BYTES);
    assert_eq!(disk.status().resync_reason, None);
}

#[test]
fn without_space_for_the_new_maps_the_disk_goes_on_as_it_was() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    world.resize(NEW_BYTES);
    world.files.set_full(true);
    assert_eq!(disk.shrink(NEW_BYTES).unwrap_err().code(), "LOG_WRITE_FAILED");
    assert_eq!(disk.size_bytes(), OLD_BYTES);
    world.files.set_full(false);
    disk.shrink(NEW_BYTES).unwrap();
    assert_eq!(disk.size_bytes(), NEW_BYTES);
}

#[test]
fn a_size_that_is_not_durable_is_not_accepted() {
    let world = World::new(OLD_BYTES);
    let disk = tracked(&world);
    world.resize(NEW_BYTES);
    let failing = arm(FaultRule::new(&world.path, FileOperation::Sync, 5)).unwrap();
    let refused = disk.shrink(NEW_BYTES);
    disarm(failing);
    assert_eq!(refused.unwrap_err().code(), "DISK_SYNC_FAILED");
    assert_eq!(disk.size_bytes(), OLD_BYTES);
}

#[test]
fn a_death_or_a_power_loss_at_any_step_of_shrinking_loses_no_write() {
    end_before_every_step(
        OLD_BYTES,
        |world, options, acknowledged| {
            let disk = world.open(options).unwrap().0;
            disk.write_at(0, &[1; 512]).unwrap();
            disk.write_at(NEW_BYTES, &[1; 4096]).unwrap();
            disk.flush().unwrap();
            acknowledged.store(1, Ordering::Relaxed);
            world.resize(NEW_BYTES);
            disk.shrink(NEW_BYTES).unwrap();
            disk.write_at(NEW_BYTES - 512, &[2; 512]).unwrap();
            disk.flush().unwrap();
            acknowledged.store(2, Ordering::Relaxed);
        },
        accepting,
        |world, disk, &End { fatal, acknowledged, .. }| {
            if acknowledged >= 1 {
                let sizes = (disk.size_bytes(), file_bytes(world));
                assert_eq!(sizes, (NEW_BYTES, NEW_BYTES), "step {fatal}");
                assert_eq!(at(world, 0), 1, "step {fatal}");
            }
            if acknowledged == 2 {
                assert_eq!(at(world, NEW_BYTES - 512), 2, "step {fatal}");
                cut(std::slice::from_ref(disk)).unwrap();
                let last_chunk = (NEW_BYTES - 512) / CHUNK_BYTES * CHUNK_BYTES;
                assert!(!disk.dirty(last_chunk, CHUNK_BYTES).is_empty(), "step {fatal}");
            }
        },
    );
}
