//! Log files that are written again: nothing of an earlier life is ever part of a log.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use secondsite_disk::faults::PowerLossDevice;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, FlushMode, Mode, Recovery, TrackedDisk};
use secondsite_hrl::LogFile;
use tracked_common::*;

fn spare(files: &MemoryTrackFiles) -> Option<PathBuf> {
    files.paths().into_iter().find(|path| path.to_string_lossy().contains(".spare-"))
}

/// Cycles of many writes, so that the files in use are full of an earlier life; then a few writes into one of them.
fn lived(disk: &Arc<TrackedDisk>, files: &MemoryTrackFiles, replica: &mut Replica) {
    for round in 0..5u64 {
        for n in 0..300 {
            disk.write_at(n * 4096, &[round as u8 + 1; 4096]).unwrap();
        }
        replica.cycle(files, disk, false);
    }
    for n in 0..3 {
        disk.write_at(n * 4096 + (20 << 20), &[0xee; 4096]).unwrap();
    }
    disk.flush().unwrap();
}

#[test]
fn the_file_of_a_released_log_is_written_again_and_its_old_content_is_no_part_of_the_new_log() {
    for mode in [FlushMode::Disk, FlushMode::Log] {
        for is_power_loss in [false, true] {
            let device = Arc::new(PowerLossDevice::new("disk", DISK_BYTES));
            let files = Arc::new(MemoryTrackFiles::new());
            let disk = open(device.clone(), with_mode(options(&files, "one", 1), mode)).0;
            let mut replica = Replica::new();
            lived(&disk, &files, &mut replica);
            assert!(spare(&files).is_some(), "the test is of files that are written again");
            let longest = (1..20).filter_map(|n| files.file(&log_path(n))?.size_bytes().ok()).max().unwrap();
            assert!(longest > 1 << 20, "a log of three writes stands in a file of {longest} bytes");
            drop(disk);
            let (device, files) = match is_power_loss {
                true => (Arc::new(device.crash(3)), Arc::new(files.lose_power(9))),
                false => (device, files),
            };
            let boot = if is_power_loss { "two" } else { "one" };
            let (disk, opened) = open(device, with_mode(options(&files, boot, 2), mode));
            assert_eq!(opened.recovery == Recovery::PowerLoss, is_power_loss);
            assert!(!disk.status().is_whole_disk_unknown && disk.status().mode == Mode::Logging);
            assert_eq!(spare(&files), None, "an open starts without spares");
            let found = read_all(disk.as_ref());
            assert_eq!((found[0], found[20 << 20], found[(20 << 20) + 4096 * 2]), (5, 0xee, 0xee));
            let compared = replica.converge(&files, &disk);
            assert_eq!(compared > 0, is_power_loss, "{mode:?}");
        }
    }
}

#[test]
fn a_death_or_a_power_loss_while_a_file_changes_its_life_loses_nothing() {
    let steps = ["spare-written", "spare-index-renamed", "spare-renamed", "released-one", "release-noted"];
    for fatal in steps {
        for seed in 0..12 {
            let device = Arc::new(PowerLossDevice::new("disk", DISK_BYTES));
            let files = Arc::new(MemoryTrackFiles::new());
            let mut replica = Replica::new();
            let mut dying = options(&files, "one", 1);
            let may_die = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let switch = may_die.clone();
            dying.steps = Some(Arc::new(move |name| {
                if name == fatal && switch.load(std::sync::atomic::Ordering::Relaxed) {
                    resume_unwind(Box::new("died"));
                }
            }));
            let disk = open(device.clone(), dying).0;
            lived(&disk, &files, &mut replica);
            may_die.store(true, std::sync::atomic::Ordering::Relaxed);
            let died = catch_unwind(AssertUnwindSafe(|| {
                for n in 0..4 {
                    disk.write_at(n * 8192, &[0xdd; 512]).unwrap();
                    replica.cycle(&files, &disk, false);
                }
            }));
            assert!(died.is_err(), "{fatal} was never reached");
            disk.flush().unwrap();
            drop(disk);
            let is_power_loss = seed > 0;
            let (device, files) = match is_power_loss {
                true => (Arc::new(device.crash(seed)), Arc::new(files.lose_power(seed))),
                false => (device, files),
            };
            let boot = if is_power_loss { "two" } else { "one" };
            let disk = open(device, options(&files, boot, 2)).0;
            let status = disk.status();
            assert!(!status.is_whole_disk_unknown, "{fatal}, seed {seed}: {:?}", status.resync_reason);
            assert_eq!(read_all(disk.as_ref())[0], 0xdd, "{fatal}, seed {seed}");
            replica.last_id = None; // Logs whose release died come again.
            replica.converge(&files, &disk);
        }
    }
}

#[test]
fn a_closed_disk_leaves_no_spare() {
    let files = Arc::new(MemoryTrackFiles::new());
    let disk = open(Arc::new(PowerLossDevice::new("disk", DISK_BYTES)), options(&files, "one", 1)).0;
    lived(&disk, &files, &mut Replica::new());
    assert!(spare(&files).is_some());
    disk.close().unwrap();
    assert_eq!(spare(&files), None);
}
