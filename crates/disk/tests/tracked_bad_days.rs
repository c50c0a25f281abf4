//! Full log disks, failing disks, damaged and missing logs, changes behind our back: the guest never notices, and the
//! reason is told.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation};
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::tracked::{ACTIVE_REGIONS_MAX, CHUNK_BYTES, REGION_BYTES};
use secondsite_disk::{
    Access, BlockDevice, FileDevice, Mode, Recovery, ResyncReason, TrackOptions, TrackedDisk, cut,
};
use secondsite_hrl::faults::SplitMix;
use secondsite_hrl::{LogFile, index_path};
use tracked_common::*;

fn world() -> (Arc<MemoryDevice>, Arc<MemoryTrackFiles>) {
    (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()))
}

fn cut_one(disk: &Arc<TrackedDisk>) {
    cut(std::slice::from_ref(disk)).unwrap();
}

#[test]
fn a_full_log_disk_never_fails_a_write_and_converges_after() {
    let (device, files) = world();
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let (mut replica, mut random, mut model) = (Replica::new(), SplitMix(11), vec![0; DISK_BYTES as usize]);
    let mut work = |disk: &Arc<TrackedDisk>, count| {
        for _ in 0..count {
            let request = request(&mut random);
            request.run(disk.as_ref()).unwrap();
            request.apply(&mut model);
        }
    };
    work(&disk, 30);
    replica.cycle(&files, &disk, false);
    work(&disk, 10);
    files.set_full(true);
    work(&disk, 30);
    let status = disk.status();
    assert_eq!((status.mode, status.resync_reason), (Mode::Map, Some(ResyncReason::LogDiskFull)));
    assert!(status.changed_bytes > 0 && !status.is_whole_disk_unknown);
    assert_eq!(disk.begin_resync().unwrap_err().code(), "LOG_WRITE_FAILED", "there is no space for a log");
    work(&disk, 5);
    drop(disk);
    let disk = open(device, options(&files, "boot", 2)).0;
    assert_eq!(disk.status().mode, Mode::Map, "the map is kept over the death of the process");
    work(&disk, 5);
    files.set_full(false);
    let compared = replica.converge(&files, &disk);
    assert!(compared < DISK_BYTES, "{compared} bytes compared");
    work(&disk, 20);
    replica.converge(&files, &disk);
    assert_same(&replica.bytes, &model, "replica and oracle");
}

#[test]
fn any_failing_operation_on_a_log_leads_to_the_map() {
    for failing in ["create", "write", "sync", "resize"] {
        let (device, files) = world();
        let fails = Arc::new(AtomicBool::new(false));
        let switch = fails.clone();
        let mut options = options(&files, "boot", 1);
        options.log_fault = Some(Arc::new(move |operation| {
            (switch.load(Ordering::Relaxed) && operation == failing).then(|| io::Error::from_raw_os_error(5))
        }));
        let disk = open(device, options).0;
        let mut replica = Replica::new();
        disk.write_at(0, &[1; 4096]).unwrap();
        fails.store(true, Ordering::Relaxed);
        disk.write_at(65536, &[2; 4096]).unwrap();
        disk.flush().unwrap();
        let first = cut(std::slice::from_ref(&disk));
        disk.write_at(131_072, &[3; 4096]).unwrap();
        let second = cut(std::slice::from_ref(&disk));
        disk.write_at(DISK_BYTES - 512, &[4; 512]).unwrap();
        disk.flush().unwrap();
        if failing == "create" {
            // The prepared log serves the first cut; without a next one there is no second, and the log goes on.
            assert!(first.is_ok());
            assert_eq!(second.unwrap_err().code(), "LOG_WRITE_FAILED");
            assert_eq!(disk.status().mode, Mode::Logging);
        } else {
            let status = disk.status();
            assert_eq!(
                (status.mode, status.resync_reason),
                (Mode::Map, Some(ResyncReason::LogWriteFailed)),
                "{failing}"
            );
        }
        fails.store(false, Ordering::Relaxed);
        replica.converge(&files, &disk);
        assert_eq!(replica.bytes[DISK_BYTES as usize - 512..], [4; 512], "{failing}");
    }
}

#[test]
fn a_write_the_disk_refuses_is_told_to_the_guest_and_compared_later() {
    let (memory, files) = world();
    let device = Arc::new(FaultDevice::new(memory));
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let mut replica = Replica::new();
    device.arm(Fault::new(Operation::Write).errno(5));
    let error = disk.write_at(1 << 20, &[9; 4096]).unwrap_err();
    assert_eq!(error.code(), "DISK_WRITE_FAILED");
    device.disarm();
    let status = disk.status();
    assert_eq!(status.resync_reason, Some(ResyncReason::DiskWriteFailed));
    assert_eq!((status.mode, status.changed_bytes), (Mode::Logging, CHUNK_BYTES));
    replica.converge(&files, &disk);
    assert_eq!(replica.bytes[1 << 20], 0, "the replica has what the disk has, not what the log says");
}

#[test]
fn a_failed_sync_of_the_disk_is_told_and_stays() {
    let (memory, files) = world();
    let device = Arc::new(FaultDevice::new(memory));
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    disk.write_at(0, &[1; 512]).unwrap();
    device.arm(Fault::new(Operation::Flush).errno(5).always());
    assert_eq!(disk.flush().unwrap_err().code(), "DISK_SYNC_FAILED");
    assert_eq!(disk.close().unwrap_err().code(), "DISK_SYNC_FAILED", "no clean close after that");
}

fn three_sealed_logs() -> (Arc<MemoryDevice>, Arc<MemoryTrackFiles>, Replica) {
    let (device, files) = world();
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    for n in 0..3 {
        disk.write_at(n * 8192, &[n as u8 + 1; 8192]).unwrap();
        cut_one(&disk);
    }
    disk.write_at(DISK_BYTES - 512, &[9; 512]).unwrap();
    assert_eq!(disk.unreleased_logs().len(), 3);
    (device, files, Replica::new())
}

#[test]
fn a_missing_log_breaks_the_chain_and_the_whole_disk_is_compared() {
    for missing in [2, 3] {
        let (device, files, mut replica) = three_sealed_logs();
        use secondsite_disk::TrackFiles;
        files.remove(&log_path(missing)).unwrap();
        let disk = open(device, options(&files, "boot", 2)).0;
        let status = disk.status();
        assert_eq!(status.resync_reason, Some(ResyncReason::ChainBroken));
        assert!(status.is_whole_disk_unknown);
        assert_eq!(disk.unreleased_logs().len() as u64, missing - 1, "the good beginning stays");
        assert_eq!(replica.converge(&files, &disk), DISK_BYTES);
    }
}

#[test]
fn a_damaged_log_is_set_aside_and_the_whole_disk_is_compared() {
    for (what, path) in
        [("header", log_path(2)), ("index", index_path(&log_path(2))), ("open log", index_path(&log_path(4)))]
    {
        let (device, files, mut replica) = three_sealed_logs();
        let at = if what == "header" { 44 } else { 4096 + 20 };
        let file = files.file(&path).unwrap();
        if what == "open log" {
            // Damage in the middle, with a good record behind it.
            let disk = open(device.clone(), options(&files, "boot", 5)).0;
            disk.write_at(0, &[5; 512]).unwrap();
        }
        file.damage(|bytes| bytes[at] ^= 1);
        let disk = open(device, options(&files, "boot", 2)).0;
        let status = disk.status();
        assert_eq!(
            (status.mode, status.resync_reason),
            (Mode::Map, Some(ResyncReason::LogDamaged)),
            "{what}"
        );
        let aside = files.paths().iter().filter(|path| path.to_string_lossy().ends_with(".damaged")).count();
        assert!(aside >= 2, "{what}: log and index are kept");
        assert_eq!(replica.converge(&files, &disk), DISK_BYTES);
    }
}

#[test]
fn a_damaged_tracking_file_makes_the_whole_disk_unknown() {
    for at in [0usize, 8192 + 5] {
        let (device, files, mut replica) = three_sealed_logs();
        let file = files.file(Path::new("/track/disk.hrt")).unwrap();
        file.damage(|bytes| {
            bytes[at] ^= 1;
            bytes[4096 + at % 4096] ^= 1;
        });
        let disk = open(device, options(&files, "boot", 2)).0;
        assert_eq!(disk.status().resync_reason, Some(ResyncReason::LogDamaged));
        assert!(disk.status().is_whole_disk_unknown);
        assert_eq!(replica.converge(&files, &disk), DISK_BYTES);
    }
}

#[test]
fn a_tracking_file_that_cannot_be_written_is_not_trusted_later() {
    let (device, files) = world();
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let file = files.file(Path::new("/track/disk.hrt")).unwrap();
    file.fail_writes_after(Some(0), 0);
    disk.write_at(0, &[1; 512]).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.close().unwrap_err().code(), "LOG_WRITE_FAILED");
    drop(disk);
    file.fail_writes_after(None, 0);
    assert_eq!(file.size_bytes().unwrap(), 512);
    let disk = open(device, options(&files, "boot", 2)).0;
    assert!(disk.status().is_whole_disk_unknown);
    Replica::new().converge(&files, &disk);
}

#[test]
fn another_disk_size_or_id_is_refused_and_nothing_is_changed() {
    let (device, files, _) = three_sealed_logs();
    let larger = Arc::new(MemoryDevice::new("disk", DISK_BYTES + 512));
    let refused = TrackedDisk::open(larger, options(&files, "boot", 2)).err().unwrap();
    assert_eq!(refused.code(), "DISK_SIZE_DIFFERS");
    let other = TrackOptions { disk_id: [1; 16], ..options(&files, "boot", 2) };
    assert_eq!(TrackedDisk::open(device.clone(), other).err().unwrap().code(), "OPTION_OUT_OF_RANGE");
    let (disk, opened) = open(device, options(&files, "boot", 3));
    assert_eq!(opened.recovery, Recovery::ProcessDeath);
    assert_eq!(disk.unreleased_logs().len(), 3);
}

#[test]
fn a_disk_changed_while_it_was_closed_is_compared_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("os.raw");
    drop(FileDevice::create(&path, DISK_BYTES).unwrap());
    let open_file = |seed| {
        let device = FileDevice::open(&path, Access::Exclusive).unwrap();
        let (_, files) = world();
        let mut options = options(&files, "boot", seed);
        options.tracking_directory = folder.path().to_path_buf();
        options.files = Arc::new(secondsite_disk::FsTrackFiles);
        TrackedDisk::open(Arc::new(device), options).unwrap()
    };
    let (disk, opened) = open_file(1);
    assert_eq!(opened.recovery, Recovery::Created);
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    drop(disk);
    let (disk, opened) = open_file(2);
    assert_eq!((opened.recovery, disk.status().resync_reason), (Recovery::Clean, None));
    disk.close().unwrap();
    drop(disk);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&path).unwrap(),
        &[7; 512],
        4096,
    )
    .unwrap();
    let (disk, opened) = open_file(3);
    assert_eq!(opened.recovery, Recovery::Clean);
    assert_eq!(disk.status().resync_reason, Some(ResyncReason::DiskModifiedOffline));
    assert!(disk.status().is_whole_disk_unknown);
}

#[test]
fn coalesced_logs_take_the_place_of_all_and_survive_a_crash_at_each_step() {
    for fatal in [None, Some("coalesced"), Some("coalesced-index-renamed"), Some("coalesced-renamed")] {
        let folder = tempfile::tempdir().unwrap();
        let device = Arc::new(MemoryDevice::new("disk", DISK_BYTES));
        let (_, unused) = world();
        let open_real = |seed, fatal: Option<&'static str>| {
            let mut options = options(&unused, "boot", seed);
            options.tracking_directory = folder.path().to_path_buf();
            options.files = Arc::new(secondsite_disk::FsTrackFiles);
            options.steps = Some(Arc::new(move |name| {
                if Some(name) == fatal {
                    std::panic::resume_unwind(Box::new(name.to_owned()));
                }
            }));
            open(device.clone(), options).0
        };
        let disk = open_real(1, fatal);
        for n in 0..3u8 {
            disk.write_at(4096, &vec![n + 1; 1 << 20]).unwrap();
            cut_one(&disk);
        }
        let logs = disk.unreleased_logs();
        let ids: Vec<_> = logs.iter().map(|log| log.sealed.id).collect();
        let done =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disk.coalesce_logs(&ids).unwrap()));
        assert_eq!(done.is_err(), fatal.is_some());
        drop(disk);
        let disk = open_real(2, None);
        assert_eq!((disk.status().mode, disk.status().resync_reason), (Mode::Logging, None), "{fatal:?}");
        let left = disk.unreleased_logs();
        if fatal == Some("coalesced") {
            assert_eq!(left, logs.iter().map(|log| at_whole_seconds(log, &left)).collect::<Vec<_>>());
            continue;
        }
        assert_eq!(left.len(), 1, "{fatal:?}");
        let sealed = &left[0].sealed;
        assert_eq!((sealed.id, sealed.previous_id), (logs[2].sealed.id, logs[0].sealed.previous_id));
        assert_eq!(sealed.data_bytes, 1 << 20);
        secondsite_hrl::verify(&left[0].path, Some(DISK_BYTES)).unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1 + 2 + 2 + 2, "tracking file, coalesced, open and prepared log");
    }
}

/// After a restart a cut is known to the second.
fn at_whole_seconds(
    log: &secondsite_disk::QueuedLog,
    left: &[secondsite_disk::QueuedLog],
) -> secondsite_disk::QueuedLog {
    let same = left.iter().find(|other| other.sealed.id == log.sealed.id).unwrap();
    assert!(log.cut_time_ns.abs_diff(same.cut_time_ns) < 1_000_000_000);
    secondsite_disk::QueuedLog { cut_time_ns: same.cut_time_ns, ..log.clone() }
}

#[test]
fn a_long_log_is_rotated_without_a_cut() {
    let (device, files) = world();
    let mut options = options(&files, "boot", 1);
    options.entry_count_max = 10;
    let disk = open(device, options).0;
    for n in 0..100u64 {
        disk.write_at(n * 512, &[n as u8; 512]).unwrap();
        // The next log is made by a thread; waiting for it here keeps the logs short.
        while n % 10 == 9 && disk.unreleased_logs().len() as u64 <= n / 10 {
            std::thread::yield_now();
        }
    }
    cut_one(&disk);
    let logs = disk.unreleased_logs();
    assert!(logs.len() >= 10, "{} logs", logs.len());
    assert_eq!(logs.iter().map(|log| log.sealed.entry_count).sum::<u64>(), 100);
    assert_eq!(disk.written_since_cut(0, DISK_BYTES), []);
    let mut replica = Replica::new();
    logs.iter().for_each(|log| replica.apply(&files, log));
    assert_same(&read_all(disk.as_ref()), &replica.bytes, "source and replica");
}

#[test]
fn never_more_than_the_bound_is_active() {
    let size = 2 * ACTIVE_REGIONS_MAX as u64 * REGION_BYTES;
    let files = Arc::new(MemoryTrackFiles::new());
    let disk = open(Arc::new(MemoryDevice::new("disk", size)), options(&files, "boot", 1)).0;
    for region in 0..2 * ACTIVE_REGIONS_MAX as u64 {
        disk.write_at(region * REGION_BYTES, &[1; 512]).unwrap();
        assert!(disk.status().active_region_count <= ACTIVE_REGIONS_MAX as u64);
    }
    disk.discard(512, size - 512).unwrap();
    assert!(disk.status().active_region_count <= ACTIVE_REGIONS_MAX as u64);
    assert_eq!(disk.status().mode, Mode::Logging);
}

#[test]
fn a_cut_over_disks_is_one_instant() {
    let worlds: Vec<_> = (0..4u8).map(|_| world()).collect();
    let disks: Vec<_> = worlds
        .iter()
        .zip(0u8..)
        .map(|((device, files), n)| {
            let options = TrackOptions { disk_id: [n; 16], ..options(files, "boot", u64::from(n)) };
            open(device.clone(), options).0
        })
        .collect();
    // One writer goes round the disks with rising numbers: at a cut no disk may be ahead of one written before it.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                for disk in &disks {
                    let block: Vec<u8> = number.to_le_bytes().iter().copied().cycle().take(512).collect();
                    disk.write_at(0, &block).unwrap();
                }
            }
        });
        let mut replicas: Vec<Replica> = disks.iter().map(|_| Replica::new()).collect();
        for _ in 0..30 {
            let queued: Vec<usize> = disks.iter().map(|disk| disk.unreleased_logs().len()).collect();
            assert_eq!(queued, [0; 4]);
            cut(&disks).unwrap();
            let numbers: Vec<u64> = disks
                .iter()
                .zip(&mut replicas)
                .zip(&worlds)
                .map(|((disk, replica), (_, files))| {
                    let logs = disk.unreleased_logs();
                    logs.iter().for_each(|log| replica.apply(files, log));
                    disk.release_logs(&logs.iter().map(|log| log.sealed.id).collect::<Vec<_>>()).unwrap();
                    u64::from_le_bytes(replica.bytes[..8].try_into().unwrap())
                })
                .collect();
            assert!(
                numbers.windows(2).all(|pair| pair[1] <= pair[0] && pair[0] <= pair[1] + 1),
                "{numbers:?}"
            );
            assert!(numbers[0] <= numbers[3] + 1, "{numbers:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(disks.iter().all(|disk| disk.status().max_hold_ns > 0));
}

#[test]
fn after_a_fold_the_chain_begins_anew_as_the_replica_may_not_have_what_was_folded() {
    let (device, files) = world();
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let mut replica = Replica::new();
    disk.write_at(0, &[1; 4096]).unwrap();
    replica.cycle(&files, &disk, false);
    disk.write_at(65536, &[2; 4096]).unwrap();
    cut_one(&disk); // Sealed, and never sent.
    replica.resync(&files, &disk); // Nothing is written while it runs.
    disk.write_at(131_072, &[3; 4096]).unwrap();
    cut_one(&disk);
    let logs = disk.unreleased_logs();
    assert_eq!(logs[0].sealed.previous_id, secondsite_hrl::LogId::NONE);
    drop(disk);
    let disk = open(device, options(&files, "boot", 2)).0;
    assert_eq!(
        disk.unreleased_logs()[0].sealed.id,
        logs[0].sealed.id,
        "and the next open takes it for whole"
    );
    assert_eq!(replica.converge(&files, &disk), 0, "and nothing is compared");
}

#[test]
fn a_tracking_file_that_is_gone_is_known_to_be_lost_by_its_successor() {
    use secondsite_disk::TrackFiles;
    let (device, files) = world();
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let mut replica = Replica::new();
    disk.write_at(0, &[1; 4096]).unwrap();
    replica.cycle(&files, &disk, false);
    disk.write_at(65536, &[2; 4096]).unwrap(); // Never sent, and no log of it is left.
    disk.close().unwrap();
    drop(disk);
    for name in files.names(Path::new("/track")).unwrap() {
        files.remove(&Path::new("/track").join(name)).unwrap();
    }
    // The first opening dies at once, and the second need not be told.
    for (boot, is_expected) in [("boot", true), ("boot", false)] {
        let disk = open(device.clone(), TrackOptions { is_expected, ..options(&files, boot, 2) }).0;
        let status = disk.status();
        assert_eq!(status.resync_reason, Some(ResyncReason::LogDamaged));
        assert_eq!((status.mode, status.is_whole_disk_unknown), (Mode::Map, true));
    }
    let disk = open(device, options(&files, "boot", 3)).0;
    assert_eq!(replica.converge(&files, &disk), DISK_BYTES);
}
