//! Several writers at once: logged in one order, written to the disk side by side, and nobody else sees a step between.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, Extent, Result, TrackedDisk, cut};
use secondsite_hrl::faults::SplitMix;
use tracked_common::*;

type BeforeWrite = Box<dyn Fn(u64) + Send + Sync>;

/// A disk in memory that calls before each write.
struct Gated {
    memory: MemoryDevice,
    before_write: BeforeWrite,
    written: Mutex<Vec<u64>>,
}

impl Gated {
    fn new(before_write: BeforeWrite) -> Arc<Self> {
        let memory = MemoryDevice::new("disk", DISK_BYTES);
        Arc::new(Self { memory, before_write, written: Mutex::default() })
    }
}

impl BlockDevice for Gated {
    fn path(&self) -> &Path {
        self.memory.path()
    }
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        self.memory.sector_size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.memory.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        (self.before_write)(offset);
        self.written.lock().push(offset);
        self.memory.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        (self.before_write)(offset);
        self.memory.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.write_zeroes(offset, length_bytes, true)
    }
    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.memory.extent_at(offset, end)
    }
}

/// Stops the first write at 0 until it is told to go on; tells when it is there.
fn stopping_device() -> (Arc<Gated>, Receiver<()>, Sender<()>) {
    let (arrived, is_there) = channel();
    let (go_on, wait) = channel();
    let (arrived, wait) = (Mutex::new(Some(arrived)), Mutex::new(wait));
    let before_write = move |offset: u64| {
        let arrived = if offset == 0 { arrived.lock().take() } else { None };
        if let Some(arrived) = arrived {
            arrived.send(()).unwrap();
            wait.lock().recv().unwrap();
        }
    };
    (Gated::new(Box::new(before_write)), is_there, go_on)
}

#[test]
fn a_write_beside_a_slow_one_is_done_first_and_one_over_it_second() {
    let (device, is_there, go_on) = stopping_device();
    let files = Arc::new(MemoryTrackFiles::new());
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| disk.write_at(0, &[1; 8192]));
        is_there.recv().unwrap();
        disk.write_at(8192, &[2; 4096]).unwrap();
        let over = scope.spawn(|| disk.write_at(4096, &[3; 512]));
        // Time for one that does not wait to be there first.
        (0..20_000).for_each(|_| std::thread::yield_now());
        let before = device.written.lock().clone();
        go_on.send(()).unwrap();
        slow.join().unwrap().unwrap();
        over.join().unwrap().unwrap();
        assert_eq!(before, [8192], "one waits for the slow one, which it overlaps, and one does not");
    });
    assert_eq!(read_all(disk.as_ref())[4096..4608], [3; 512]);
    assert_eq!(Replica::new().converge(&files, &disk), 0);
}

#[test]
fn a_cut_waits_for_what_is_logged_and_not_on_the_disk() {
    let (device, is_there, go_on) = stopping_device();
    let files = Arc::new(MemoryTrackFiles::new());
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let is_cut = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| disk.write_at(0, &[1; 4096]));
        is_there.recv().unwrap();
        let cutting = scope.spawn(|| {
            cut(std::slice::from_ref(&disk)).unwrap();
            is_cut.store(true, Ordering::SeqCst);
            read_all(disk.as_ref())
        });
        // Not proof, but where a cut does not wait it is over by now, most of the time.
        (0..1000).for_each(|_| std::thread::yield_now());
        let was_cut = is_cut.load(Ordering::SeqCst);
        go_on.send(()).unwrap();
        assert!(!was_cut);
        slow.join().unwrap().unwrap();
        assert_eq!(cutting.join().unwrap()[..4096], [1; 4096], "the log of the cut says so");
    });
}

#[test]
fn who_dies_between_log_and_disk_is_redone_though_others_came_after() {
    struct Died;
    let device = Gated::new(Box::new(|offset| {
        if offset == 0 {
            resume_unwind(Box::new(Died));
        }
    }));
    let files = Arc::new(MemoryTrackFiles::new());
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    let died = catch_unwind(AssertUnwindSafe(|| disk.write_at(0, &[1; 4096])));
    assert!(died.unwrap_err().is::<Died>());
    (1..500u64).for_each(|n| disk.write_at(n * 4096, &[n as u8; 4096]).unwrap());
    assert_eq!(device.memory.bytes()[..4096], [0; 4096]);
    drop(disk);
    let memory = Arc::new(MemoryDevice::new("disk", DISK_BYTES));
    memory.write_at(0, &device.memory.bytes()).unwrap();
    let disk = open(memory, options(&files, "boot", 2)).0;
    assert_eq!(read_all(disk.as_ref())[..4096], [1; 4096]);
    assert_eq!(Replica::new().converge(&files, &disk), 0);
}

fn write_at_random(disk: &TrackedDisk, seed: u64) {
    let mut random = SplitMix(seed);
    for _ in 0..400 {
        let (offset, length) = (random.next() % 32 * 2048, 512 << (random.next() % 4));
        let request = match random.next() % 10 {
            0 => Request::Zeroes(offset, length),
            1 => Request::Flush,
            _ => Request::Write(offset, vec![random.next() as u8; length as usize]),
        };
        request.run(disk).unwrap();
    }
}

#[test]
fn disk_and_replica_are_equal_after_writers_that_overlap_cuts_and_rotations() {
    for seed in 0..8 {
        let device = Gated::new(Box::new(|_| std::thread::yield_now()));
        let files = Arc::new(MemoryTrackFiles::new());
        let mut options = options(&files, "boot", seed);
        options.entry_count_max = 300;
        let disk = open(device, options).0;
        let mut replica = Replica::new();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let disk = &disk;
                scope.spawn(move || write_at_random(disk, 100 * seed + n));
            }
            (0..5).for_each(|_| replica.cycle(&files, &disk, false));
        });
        assert_eq!(replica.converge(&files, &disk), 0, "seed {seed}");
    }
}
