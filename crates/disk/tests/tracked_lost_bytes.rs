//! What a recovery must not undo, and what it must bring back however damaged a log is.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_disk::faults::{MemoryDevice, PowerLossDevice};
use secondsite_disk::tracked::CHUNK_BYTES;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, FlushMode, Mode, Recovery, ResyncReason, TrackedDisk, cut};
use secondsite_hrl::index_path;
use tracked_common::*;

fn cut_one(disk: &Arc<TrackedDisk>) {
    cut(std::slice::from_ref(disk)).unwrap();
}

fn at(disk: &dyn BlockDevice, offset: u64) -> u8 {
    let mut sector = [0; 512];
    disk.read_at(offset, &mut sector).unwrap();
    assert!(sector.iter().all(|byte| *byte == sector[0]), "sector at {offset} is mixed");
    sector[0]
}

#[test]
fn a_log_that_was_given_up_is_not_redone_over_what_the_map_alone_knows() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    disk.write_at(0, &[1; 512]).unwrap();
    files.set_full(true);
    disk.write_at(0, &[2; 512]).unwrap();
    assert_eq!(disk.status().mode, Mode::Map);
    drop(disk);
    files.set_full(false);
    let (disk, opened) = open(device, options(&files, "boot", 2));
    assert_eq!(at(disk.as_ref(), 0), 2, "an acknowledged write was taken back");
    assert_eq!(opened.redone_bytes, 0);
    Replica::new().converge(&files, &disk);
}

#[test]
fn a_log_swapped_out_before_the_death_is_not_redone_over_the_one_behind_it() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let mut options_of_first = options(&files, "boot", 1);
    options_of_first.steps = Some(Arc::new(|name| {
        if name == "swapped" {
            resume_unwind(Box::new("died"));
        }
    }));
    let disk = open(device.clone(), options_of_first).0;
    disk.write_at(0, &[1; 512]).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| cut_one(&disk))).is_err());
    disk.write_at(0, &[2; 512]).unwrap();
    for n in 1..=2000 {
        disk.write_at(n * 512, &[3; 512]).unwrap();
    }
    drop(disk);
    let (disk, _) = open(device, options(&files, "boot", 2));
    assert_eq!(at(disk.as_ref(), 0), 2, "an acknowledged write was taken back");
    assert_eq!(Replica::new().converge(&files, &disk), 0, "and nothing has to be compared");
}

/// Logs of flushed writes in mode `log`, one at each MiB: two a sealed log, two in the open one; then the power goes
/// with nothing of it on the disk.
fn lost_power(damage: impl Fn(&MemoryTrackFiles)) -> (Arc<PowerLossDevice>, Arc<MemoryTrackFiles>) {
    let (device, files) = (PowerLossDevice::new("disk", DISK_BYTES), Arc::new(MemoryTrackFiles::new()));
    let device = Arc::new(device);
    let disk = open(device.clone(), with_mode(options(&files, "one", 1), FlushMode::Log)).0;
    for n in 0..6u64 {
        disk.write_at(n << 20, &[n as u8 + 1; 4096]).unwrap();
        disk.flush().unwrap();
        if n == 1 || n == 3 {
            cut_one(&disk);
        }
    }
    drop(disk);
    let device = Arc::new(device.crash(0)); // Seed 0: nothing survives.
    let files = Arc::new(files.lose_power(6));
    damage(&files);
    (device, files)
}

fn flip(files: &MemoryTrackFiles, path: PathBuf, at: usize) {
    files.file(&path).unwrap().damage(|bytes| bytes[at] ^= 1);
}

#[test]
fn rotten_data_in_a_sealed_log_costs_its_ranges_and_never_the_open() {
    let (device, files) = lost_power(|files| flip(files, log_path(1), 8192 + 100));
    let (disk, opened) = open(device, with_mode(options(&files, "two", 2), FlushMode::Log));
    assert_eq!(opened.recovery, Recovery::PowerLoss);
    let status = disk.status();
    assert_eq!((status.mode, status.resync_reason), (Mode::Map, Some(ResyncReason::LogDamaged)));
    assert!(!status.is_whole_disk_unknown);
    for n in 1..6 {
        assert_eq!(at(disk.as_ref(), n << 20), n as u8 + 1, "write {n} was flushed, and its log is good");
    }
    let damaged: Vec<_> =
        files.paths().into_iter().filter(|path| path.to_string_lossy().ends_with(".damaged")).collect();
    assert!(damaged.contains(&PathBuf::from("/track/disk.0000000001.hrl.damaged")), "{damaged:?}");
    disk.begin_resync().unwrap();
    let candidates: u64 = disk.candidates(0, DISK_BYTES).iter().map(|range| range.1).sum();
    assert!((6 * CHUNK_BYTES..DISK_BYTES).contains(&candidates), "{candidates} bytes");
    Replica::new().converge(&files, &disk);
}

#[test]
fn flushed_writes_come_back_from_every_log_however_damaged_another_one_is() {
    // What is damaged, the writes it may cost.
    let cases: [(&str, PathBuf, usize, &[u64]); 5] = [
        ("header of a sealed log", log_path(1), 44, &[]),
        ("index header of a sealed log", index_path(&log_path(1)), 20, &[0, 1]),
        ("record of a sealed log", index_path(&log_path(1)), 4096 + 20, &[0]),
        ("data of the open log", log_path(3), 8192 + 100, &[4]),
        ("first block of the open log", log_path(3), 4096 + 20, &[]),
    ];
    for (what, path, byte, costs) in cases {
        let (device, files) = lost_power(|files| flip(files, path.clone(), byte));
        let (disk, _) = open(device, with_mode(options(&files, "two", 2), FlushMode::Log));
        let status = disk.status();
        assert_eq!(status.resync_reason, Some(ResyncReason::LogDamaged), "{what}");
        for n in (0..6).filter(|n| !costs.contains(n)) {
            assert_eq!(at(disk.as_ref(), n << 20), n as u8 + 1, "{what}: write {n} was flushed");
        }
        Replica::new().converge(&files, &disk);
    }
}

#[test]
fn a_disk_that_refuses_what_is_redone_is_opened_and_compared_there() {
    use secondsite_disk::faults::{Fault, FaultDevice, Operation};
    let (device, files) = lost_power(|_| ());
    let device = Arc::new(FaultDevice::new(device));
    device.arm(Fault::new(Operation::Write).inside(0..512).errno(5));
    let (disk, _) = open(device, with_mode(options(&files, "two", 2), FlushMode::Log));
    assert_eq!(disk.status().resync_reason, Some(ResyncReason::DiskWriteFailed));
    assert_eq!(at(disk.as_ref(), 1 << 20), 2);
    Replica::new().converge(&files, &disk);
}

#[test]
fn a_range_the_disk_refused_is_compared_also_when_its_region_was_cleaned_before_the_power_went() {
    use secondsite_disk::faults::{Fault, FaultDevice, Operation};
    const REGION: u64 = 4 << 20;
    for seed in 0..100 {
        let size = 40 * REGION;
        let inner = Arc::new(PowerLossDevice::new("disk", size));
        let device = Arc::new(FaultDevice::new(inner.clone()));
        let files = Arc::new(MemoryTrackFiles::new());
        let mut first = options(&files, "one", 1);
        first.active_region_count_max = 4;
        let disk = open(device.clone(), first).0;
        device.arm(Fault::new(Operation::Write).errno(5));
        assert_eq!(disk.write_at(0, &[7; 512]).unwrap_err().code(), "DISK_WRITE_FAILED");
        for region in 1..4 {
            disk.write_at(region * REGION, &[1; 512]).unwrap();
        }
        disk.flush().unwrap();
        drop(disk);
        let device = Arc::new(inner.crash(0));
        let files = Arc::new(files.lose_power(seed));
        let disk = open(device, options(&files, "two", 2)).0;
        disk.begin_resync().unwrap();
        let candidates = disk.candidates(0, CHUNK_BYTES);
        assert_eq!(candidates, [(0, CHUNK_BYTES)], "seed {seed}: log and disk differ there");
    }
}

#[test]
fn what_was_rotated_while_the_next_log_was_made_is_sealed_without_another_write() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let mut options = options(&files, "boot", 1);
    options.entry_count_max = 1;
    // The thread that seals stands still behind its last step until a log more was rotated.
    let (may_go, is_there) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (gate, there) = (may_go.clone(), is_there.clone());
    options.steps = Some(Arc::new(move |name| {
        if name == "prepared" {
            there.store(true, Ordering::Release);
            while !gate.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
    }));
    let disk = open(device, options).0;
    disk.write_at(0, &[1; 512]).unwrap();
    while !is_there.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    disk.write_at(512, &[2; 512]).unwrap();
    may_go.store(true, Ordering::Release);
    while disk.unreleased_logs().len() < 2 {
        std::thread::yield_now();
    }
    cut_one(&disk);
    assert_eq!(disk.unreleased_logs().len(), 2);
}
