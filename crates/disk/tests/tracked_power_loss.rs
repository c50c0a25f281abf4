//! Power loss at random: what was flushed is on the disk, every other sector holds something that was written to it,
//! and the replica converges by comparing no more than what the tracked disk says.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::faults::PowerLossDevice;
use secondsite_disk::tracked::REGION_BYTES;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, FlushMode, Recovery, ResyncReason, TrackedDisk, cut};
use secondsite_hrl::faults::SplitMix;
use tracked_common::*;

struct Died;

/// Of ten regions.
const ACTIVE_MAX: u64 = 4;

const SECTORS: usize = (DISK_BYTES / 512) as usize;

/// What each sector may hold: what was flushed, or anything written to it since.
struct Oracle {
    now: Vec<u8>,
    flushed: Vec<u8>,
    since: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Oracle {
    fn new() -> Self {
        Self {
            now: vec![0; DISK_BYTES as usize],
            flushed: vec![0; DISK_BYTES as usize],
            since: BTreeMap::new(),
        }
    }

    /// Called before the request, as a crash in it may leave any part.
    fn note(&mut self, request: &Request) {
        request.apply(&mut self.now);
        for sector in request.sectors() {
            let bytes = self.now[sector * 512..sector * 512 + 512].to_vec();
            self.since.entry(sector).or_default().push(bytes);
        }
    }

    fn note_flush(&mut self) {
        self.flushed.clone_from(&self.now);
        self.since.clear();
    }

    fn check(&self, found: &[u8], what: &str) {
        for sector in 0..SECTORS {
            let range = sector * 512..sector * 512 + 512;
            let written = self.since.get(&sector).into_iter().flatten();
            let is_allowed = found[range.clone()] == self.flushed[range.clone()]
                || written.into_iter().any(|bytes| bytes[..] == found[range.clone()]);
            assert!(is_allowed, "{what}: sector {sector} holds {:?}...", &found[range][..8]);
        }
    }

    /// The disk came up with this content.
    fn restart(&mut self, found: Vec<u8>) {
        self.flushed.clone_from(&found);
        self.now = found;
        self.since.clear();
    }
}

struct Run {
    seed: u64,
    random: SplitMix,
    mode: FlushMode,
    oracle: Oracle,
    replica: Replica,
    is_disturbed: bool,
}

impl Run {
    /// Works until the fatal step; true when it came to it.
    fn life(&mut self, disk: &Arc<TrackedDisk>, files: &MemoryTrackFiles) {
        let requests = 5 + self.random.next() % 40;
        for _ in 0..requests {
            match self.random.next() % 24 {
                0 => {
                    let done = cut(std::slice::from_ref(disk));
                    assert!(done.is_ok() || self.is_disturbed);
                }
                1 => {
                    files.set_full(false);
                    self.replica.last_id = None; // Logs may come again; the chain itself is another test's.
                    self.replica.cycle(files, disk, false);
                }
                2 if self.is_disturbed => disk.fold_logs_to_map(ResyncReason::LogThreshold).unwrap(),
                3 if self.is_disturbed => {
                    files.set_full(false);
                    self.replica.resync(files, disk);
                }
                4 if self.is_disturbed => files.set_full(true),
                5 if self.is_disturbed => files.set_full(false),
                _ => {
                    let request = request(&mut self.random);
                    self.oracle.note(&request);
                    request.run(disk.as_ref()).unwrap();
                    if matches!(request, Request::Flush) {
                        self.oracle.note_flush();
                    }
                }
            }
        }
    }
}

fn run(seed: u64, mode: FlushMode, is_disturbed: bool) -> (u64, u64) {
    let (mut device, mut files) =
        (Arc::new(PowerLossDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let mut run = Run {
        seed,
        random: SplitMix(seed),
        mode,
        oracle: Oracle::new(),
        replica: Replica::new(),
        is_disturbed,
    };
    let (mut compared, mut power_losses) = (0, 0);
    for life in 0..4 {
        let fatal = run.random.next() % 150;
        let count = Arc::new(AtomicU64::new(0));
        let boot = format!("boot {life}");
        let mut options = with_mode(options(&files, &boot, run.random.next()), run.mode);
        options.active_region_count_max = ACTIVE_MAX as usize;
        options.steps = Some(Arc::new(move |_| {
            if count.fetch_add(1, Ordering::Relaxed) == fatal {
                resume_unwind(Box::new(Died));
            }
        }));
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let (disk, _) = open(device.clone(), options);
            run.life(&disk, &files);
        }));
        if let Err(e) = lived
            && !e.is::<Died>()
        {
            eprint_seed(run.seed, life);
            resume_unwind(e);
        }
        device = Arc::new(device.crash(run.random.next()));
        files = Arc::new(files.lose_power(run.random.next()));
        let boot = format!("boot {life} after");
        let options = with_mode(tracked_common::options(&files, &boot, run.random.next()), run.mode);
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let (disk, opened) = open(device.clone(), options);
            power_losses += u64::from(opened.recovery == Recovery::PowerLoss);
            let found = read_all(disk.as_ref());
            run.oracle.check(&found, "after the power came back");
            run.replica.last_id = None;
            if !run.is_disturbed {
                let changed = disk.status().changed_bytes;
                assert!(changed <= ACTIVE_MAX * REGION_BYTES, "{changed} bytes to compare");
            }
            compared += run.replica.converge(&files, &disk);
            run.oracle.restart(found);
            disk.close().unwrap();
        }));
        if let Err(e) = checked {
            eprint_seed(run.seed, life);
            resume_unwind(e);
        }
    }
    (compared, power_losses)
}

fn eprint_seed(seed: u64, life: u64) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "seed {seed}, life {life}");
}

fn many(seeds: std::ops::Range<u64>, mode: FlushMode, is_disturbed: bool) {
    let (mut compared, mut power_losses) = (0, 0);
    for seed in seeds.clone() {
        let (bytes, losses) = run(seed, mode, is_disturbed);
        compared += bytes;
        power_losses += losses;
    }
    assert!(power_losses > (seeds.end - seeds.start), "the test met {power_losses} power losses");
    assert!(compared > 0, "and compared {compared} bytes");
}

#[test]
fn flush_mode_disk_survives_power_loss() {
    many(0..15, FlushMode::Disk, false);
}

#[test]
fn flush_mode_log_survives_power_loss() {
    many(1000..1015, FlushMode::Log, false);
}

#[test]
fn full_log_disks_folds_and_resyncs_survive_power_loss_in_mode_disk() {
    many(2000..2020, FlushMode::Disk, true);
}

#[test]
fn full_log_disks_folds_and_resyncs_survive_power_loss_in_mode_log() {
    many(3000..3020, FlushMode::Log, true);
}

#[test]
fn a_flushed_write_in_mode_log_is_redone_from_the_log() {
    let (device, files) = (PowerLossDevice::new("disk", DISK_BYTES), Arc::new(MemoryTrackFiles::new()));
    let device = Arc::new(device);
    let disk = open(device.clone(), with_mode(options(&files, "one", 1), FlushMode::Log)).0;
    disk.write_at(8192, &[7; 4096]).unwrap();
    disk.flush().unwrap();
    assert_eq!(device.durable_bytes()[8192], 0, "only the log is durable");
    drop(disk);
    let device = Arc::new(device.crash(5));
    let files = Arc::new(files.lose_power(6));
    let (disk, opened) = open(device, with_mode(options(&files, "two", 2), FlushMode::Log));
    assert_eq!(opened.recovery, Recovery::PowerLoss);
    assert!(opened.redone_bytes >= 4096);
    assert_eq!(read_all(disk.as_ref())[8192..8192 + 4096], [7; 4096]);
    assert_eq!(disk.status().resync_reason, Some(ResyncReason::PowerLoss));
}

#[test]
fn only_active_regions_are_compared() {
    const REGION: u64 = 4 << 20;
    let size = 100 * REGION;
    let (device, files) = (Arc::new(PowerLossDevice::new("disk", size)), Arc::new(MemoryTrackFiles::new()));
    let disk = open(device.clone(), options(&files, "one", 1)).0;
    disk.write_at(50 * REGION, &[7; 4096]).unwrap();
    drop(disk);
    let device = Arc::new(device.crash(5));
    let files = Arc::new(files.lose_power(6));
    let disk = open(device, options(&files, "two", 2)).0;
    assert!(!disk.status().is_whole_disk_unknown);
    disk.begin_resync().unwrap();
    assert_eq!(disk.candidates(0, size), [(48 * REGION, 8 * REGION)], "the aligned group of eight");
}

/// A long life in which the power goes after every flush that was answered, with writes behind it or not.
fn power_goes_after_every_flush(seed: u64, mode: FlushMode) {
    const LOSSES: u64 = 40;
    let mut random = SplitMix(seed);
    let (mut device, mut files) =
        (Arc::new(PowerLossDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let (mut oracle, mut replica, mut changed_before) = (Oracle::new(), Replica::new(), 0);
    for loss in 0..LOSSES {
        let mut options = with_mode(options(&files, &format!("boot {loss}"), random.next()), mode);
        options.active_region_count_max = ACTIVE_MAX as usize;
        let (disk, opened) = open(device.clone(), options);
        if loss > 0 {
            assert_eq!(opened.recovery, Recovery::PowerLoss, "seed {seed}, loss {loss}");
            let found = read_all(disk.as_ref());
            oracle.check(&found, &format!("seed {seed}, loss {loss}"));
            oracle.restart(found);
            let bound = changed_before + ACTIVE_MAX * REGION_BYTES;
            assert!(disk.status().changed_bytes <= bound, "seed {seed}, loss {loss}");
        }
        match random.next() % 4 {
            0 => drop(replica.converge(&files, &disk)),
            1 => drop(cut(std::slice::from_ref(&disk)).unwrap()),
            _ => {}
        }
        replica.last_id = None; // The chain begins anew with each resynchronization that is still owed.
        for _ in 0..random.next() % 30 {
            let request = request(&mut random);
            oracle.note(&request);
            request.run(disk.as_ref()).unwrap();
            if matches!(request, Request::Flush) {
                oracle.note_flush();
            }
        }
        disk.flush().unwrap();
        oracle.note_flush();
        for _ in 0..random.next() % 3 {
            let request = request(&mut random);
            oracle.note(&request);
            request.run(disk.as_ref()).unwrap();
            if matches!(request, Request::Flush) {
                oracle.note_flush();
            }
        }
        changed_before = disk.status().changed_bytes;
        drop(disk);
        device = Arc::new(device.crash(random.next()));
        files = Arc::new(files.lose_power(random.next()));
    }
    let disk = open(device, with_mode(options(&files, "the last", 1), mode)).0;
    oracle.check(&read_all(disk.as_ref()), &format!("seed {seed}, at the end"));
    replica.converge(&files, &disk);
}

#[test]
fn the_power_goes_after_every_flush_in_mode_disk() {
    (1..4).for_each(|seed| power_goes_after_every_flush(seed, FlushMode::Disk));
}

#[test]
fn the_power_goes_after_every_flush_in_mode_log() {
    (101..104).for_each(|seed| power_goes_after_every_flush(seed, FlushMode::Log));
}
