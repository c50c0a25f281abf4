//! The death of the process at every step: nothing acknowledged is lost, nothing is compared again.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, Mode, Recovery, ResyncReason, TrackedDisk, cut};
use secondsite_hrl::faults::SplitMix;
use tracked_common::*;

struct Died;

/// Counts the steps, and dies at one of them.
fn dying_at(fatal: u64) -> (Steps, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let steps: Steps = Arc::new(move |_| {
        if counter.fetch_add(1, Ordering::Relaxed) == fatal {
            resume_unwind(Box::new(Died));
        }
    });
    (steps, count)
}

struct World {
    device: Arc<MemoryDevice>,
    files: Arc<MemoryTrackFiles>,
    replica: Replica,
    /// All acknowledged requests.
    model: Vec<u8>,
    in_flight: Option<Request>,
}

impl World {
    fn new() -> Self {
        Self {
            device: Arc::new(MemoryDevice::new("disk", DISK_BYTES)),
            files: Arc::new(MemoryTrackFiles::new()),
            replica: Replica::new(),
            model: vec![0; DISK_BYTES as usize],
            in_flight: None,
        }
    }

    fn open(&self, steps: Option<Steps>, seed: u64) -> Arc<TrackedDisk> {
        let mut options = options(&self.files, "boot", seed);
        options.steps = steps;
        open(self.device.clone(), options).0
    }

    fn run(&mut self, disk: &Arc<TrackedDisk>, request: Request) {
        self.in_flight = Some(request.clone());
        request.run(disk.as_ref()).unwrap();
        request.apply(&mut self.model);
        self.in_flight = None;
    }

    /// The disk holds every acknowledged request, and the one in flight or not.
    fn check_disk(&mut self) {
        let found = self.device.bytes();
        if found != self.model
            && let Some(request) = self.in_flight.take()
        {
            request.apply(&mut self.model);
        }
        assert_same(&found, &self.model, "disk and oracle");
    }
}

/// Runs `work` until it dies at step 0, 1, 2, ... and lets `check` look at each world that is left.
fn at_every_step(work: impl Fn(&mut World, &Arc<TrackedDisk>), check: impl Fn(&mut World, u64)) -> u64 {
    for fatal in 0.. {
        let mut world = World::new();
        let (steps, count) = dying_at(fatal);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let disk = world.open(Some(steps), fatal);
            work(&mut world, &disk);
        }));
        match ran {
            Ok(()) => {
                assert!(count.load(Ordering::Relaxed) <= fatal);
                return fatal;
            }
            Err(e) if e.is::<Died>() => {
                check(&mut world, fatal);
            }
            Err(e) => resume_unwind(e),
        }
    }
    unreachable!("the work ends")
}

fn cycles(world: &mut World, disk: &Arc<TrackedDisk>) {
    let mut random = SplitMix(42);
    for _ in 0..3 {
        for _ in 0..6 {
            let request = request(&mut random);
            world.run(disk, request);
        }
        let files = world.files.clone();
        world.replica.cycle(&files, disk, false);
    }
}

#[test]
fn death_at_any_step_of_writes_cuts_and_releases_needs_no_resync() {
    let deaths = at_every_step(cycles, |world, fatal| {
        let disk = world.open(None, 1000 + fatal);
        world.check_disk();
        let status = disk.status();
        assert_eq!((status.mode, status.resync_reason), (Mode::Logging, None), "death at step {fatal}");
        // The replica may have applied logs whose release died: they come again, and that changes nothing.
        world.replica.last_id = None;
        let files = world.files.clone();
        assert_eq!(world.replica.converge(&files, &disk), 0, "death at step {fatal}");
    });
    assert!(deaths > 60, "only {deaths} steps");
}

#[test]
fn the_log_goes_on_where_it_was() {
    let world = World::new();
    let disk = world.open(None, 1);
    disk.write_at(0, &[1; 512]).unwrap();
    drop(disk);
    let mut replica = Replica::new();
    let disk = world.open(None, 2);
    disk.write_at(512, &[2; 512]).unwrap();
    cut(std::slice::from_ref(&disk)).unwrap();
    let logs = disk.unreleased_logs();
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].sealed.entry_count, 2);
    replica.apply(&world.files, &logs[0]);
    assert_eq!(replica.bytes[..1024], [[1; 512], [2; 512]].concat());
}

fn through_a_resync(world: &mut World, disk: &Arc<TrackedDisk>) {
    let mut random = SplitMix(7);
    for _ in 0..4 {
        let request = request(&mut random);
        world.run(disk, request);
    }
    cut(std::slice::from_ref(disk)).unwrap();
    let step = request(&mut random);
    world.run(disk, step);
    disk.fold_logs_to_map(ResyncReason::LogThreshold).unwrap();
    for _ in 0..4 {
        let request = request(&mut random);
        world.run(disk, request);
    }
    let files = world.files.clone();
    world.replica.resync(&files, disk);
    for _ in 0..4 {
        let request = request(&mut random);
        world.run(disk, request);
    }
    world.replica.cycle(&files, disk, false);
}

#[test]
fn death_at_any_step_of_fold_and_resync_loses_no_candidate() {
    let deaths = at_every_step(through_a_resync, |world, fatal| {
        let disk = world.open(None, 1000 + fatal);
        world.check_disk();
        world.replica.last_id = None;
        let files = world.files.clone();
        world.replica.converge(&files, &disk);
        let request = Request::Write(4096, vec![9; 8192]);
        world.run(&disk, request);
        world.replica.converge(&files, &disk);
        assert!(fatal < 1000);
    });
    assert!(deaths > 50, "only {deaths} steps");
}

#[test]
fn opening_is_itself_interrupted_at_every_step() {
    let deaths = at_every_step(
        |world, disk| {
            world.run(disk, Request::Write(0, vec![3; 4096]));
            cut(std::slice::from_ref(disk)).unwrap();
            world.run(disk, Request::Write(512, vec![4; 4096]));
        },
        |world, fatal| {
            for again in 0.. {
                let (steps, _) = dying_at(again);
                let opened = catch_unwind(AssertUnwindSafe(|| world.open(Some(steps), 500 + again)));
                match opened {
                    Ok(disk) => {
                        world.check_disk();
                        world.replica.last_id = None;
                        let files = world.files.clone();
                        drop(disk);
                        let disk = world.open(None, 900 + fatal);
                        assert_eq!(world.replica.converge(&files, &disk), 0);
                        break;
                    }
                    Err(e) if e.is::<Died>() => {}
                    Err(e) => resume_unwind(e),
                }
            }
        },
    );
    assert!(deaths > 5);
}

#[test]
fn close_leaves_nothing_to_do() {
    let world = World::new();
    let disk = world.open(None, 1);
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    assert_eq!(disk.write_at(0, &[1; 512]).unwrap_err().code(), "DISK_IN_USE");
    drop(disk);
    let (disk, opened) = open(world.device.clone(), options(&world.files, "another boot", 3));
    assert_eq!((opened.recovery, opened.redone_bytes), (Recovery::Clean, 0));
    assert_eq!(disk.status().active_region_count, 0);
    assert_eq!(disk.status().resync_reason, None);
    let mut replica = Replica::new();
    assert_eq!(replica.converge(&world.files, &disk), 0);
    assert_eq!(replica.bytes[..512], [1; 512]);
}

#[test]
fn a_disk_is_tracked_once() {
    let world = World::new();
    let disk = world.open(None, 1);
    let again = TrackedDisk::open(world.device.clone(), options(&world.files, "boot", 2));
    assert_eq!(again.err().unwrap().code(), "DISK_IN_USE");
    drop(disk);
    world.open(None, 3);
}
