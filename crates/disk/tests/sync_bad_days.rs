//! Synchronization on bad days: disks that fail, a replica that is full, a stop in the middle, a source that shrank.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation};
use secondsite_disk::{
    Access, BlockDevice, DIGEST_BYTES, DigestAlgorithm, DiskError, Extent, FileDevice, Result, SyncOptions,
    SyncReport, digest_ranges, sync_range,
};
use support::{LoopDevice, SmallFileSystem, skip};

mod support;

const CHUNK: u64 = 64 << 10;
const SIZE: u64 = 16 << 20;
static RUNNING: AtomicBool = AtomicBool::new(false);

fn options(threads: usize) -> SyncOptions {
    SyncOptions { chunk_bytes: CHUNK, dry_run: false, threads }
}

fn sync(source: &dyn BlockDevice, replica: &dyn BlockDevice, threads: usize) -> Result<SyncReport> {
    sync_range(source, replica, 0, SIZE, &options(threads), &RUNNING)
}

/// Data everywhere but in the last quarter, which is a hole; no two blocks are alike.
fn fill(device: &dyn BlockDevice, salt: u8) {
    for block in 0..SIZE / 4096 * 3 / 4 {
        let bytes: Vec<u8> = (0..4096).map(|i| (block + i * 7) as u8 ^ salt ^ (block >> 8) as u8).collect();
        device.write_at(block * 4096, &bytes).expect("a write");
    }
}

/// A source, and a replica that differs from it in every block and stores data where the source has a hole.
fn pair() -> (Arc<MemoryDevice>, Arc<MemoryDevice>) {
    let (source, replica) = (MemoryDevice::new("source", SIZE), MemoryDevice::new("replica", SIZE));
    fill(&source, 0);
    fill(&replica, 0x55);
    replica.write_at(SIZE - CHUNK, &vec![9; CHUNK as usize]).expect("a write");
    (Arc::new(source), Arc::new(replica))
}

/// Whether every sector of the replica is what it was or what the source has.
fn is_nowhere_worse(source: &[u8], before: &[u8], after: &[u8]) -> bool {
    let sectors = source.chunks(512).zip(before.chunks(512)).zip(after.chunks(512));
    sectors.into_iter().all(|((source, before), after)| after == source || after == before)
}

#[test]
fn a_read_that_fails_on_either_side_ends_the_pass_with_its_place() {
    for (threads, is_source) in [(1, true), (1, false), (2, true), (2, false), (4, true)] {
        let (source, replica) = pair();
        let bad = 5 << 20;
        let fault = Fault::new(Operation::Read).inside(bad..bad + 512).always().errno(libc::EIO);
        let (faulty_source, faulty_replica) =
            (FaultDevice::new(source.clone()), FaultDevice::new(replica.clone()));
        if is_source {
            faulty_source.arm(fault)
        } else {
            faulty_replica.arm(fault)
        }

        let error = sync(&faulty_source, &faulty_replica, threads).expect_err("a bad sector");

        assert_eq!(error.code(), "DISK_READ_FAILED");
        let place = error.place().expect("a place");
        assert!((place.offset..place.offset + place.length_bytes).contains(&bad), "{place:?}");
        assert_eq!(place.path, Path::new(if is_source { "source" } else { "replica" }));
        faulty_source.disarm();
        faulty_replica.disarm();
        sync(&faulty_source, &faulty_replica, threads).expect("the disk is well again");
        assert!(source.bytes() == replica.bytes());
    }
}

#[test]
fn extents_that_cannot_be_told_are_an_error_and_no_hole() {
    for threads in [1, 3] {
        let (source, replica) = pair();
        let before = replica.bytes();
        let faulty = FaultDevice::new(source);
        faulty.arm(Fault::new(Operation::Extent).always().errno(libc::EIO));
        assert_eq!(sync(&faulty, &*replica, threads).expect_err("no extents").code(), "DISK_READ_FAILED");
        assert!(replica.bytes() == before, "nothing may be punched on a guess");
    }
}

#[test]
fn a_full_replica_says_so_and_is_completed_once_there_is_room() {
    for (threads, skip_count) in [(1, 0), (2, 40), (3, 41)] {
        let (source, replica) = pair();
        let before = replica.bytes();
        let faulty = FaultDevice::new(replica.clone());
        faulty.arm(Fault::new(Operation::Write).after(skip_count).always().errno(libc::ENOSPC).short(4096));

        assert_eq!(sync(&*source, &faulty, threads).expect_err("full").code(), "DISK_FULL");

        assert!(is_nowhere_worse(&source.bytes(), &before, &replica.bytes()));
        faulty.disarm();
        let rest = sync(&*source, &faulty, threads).expect("room again");
        assert!(
            rest.different_bytes <= SIZE / 4 * 3 + CHUNK - skip_count * CHUNK,
            "copied chunks stay copied"
        );
        assert!(source.bytes() == replica.bytes());
    }
}

#[test]
fn writes_and_discards_that_fail_are_told_apart_from_a_full_disk() {
    for operation in [Operation::Write, Operation::Discard] {
        let (source, replica) = pair();
        let faulty = FaultDevice::new(replica.clone());
        faulty.arm(Fault::new(operation).errno(libc::EIO));
        assert_eq!(sync(&*source, &faulty, 2).expect_err("broken").code(), "DISK_WRITE_FAILED");
        sync(&*source, &faulty, 2).expect("well again");
        assert!(source.bytes() == replica.bytes());
    }
}

#[test]
fn a_dry_run_touches_the_replica_by_reading_only() {
    let (source, replica) = pair();
    let watched = FaultDevice::new(replica.clone());
    let dry = SyncOptions { dry_run: true, ..options(2) };
    let report = sync_range(&*source, &watched, 0, SIZE, &dry, &RUNNING).expect("a dry run");
    assert_eq!(report.different_bytes, SIZE / 4 * 3 + CHUNK);
    for operation in [Operation::Write, Operation::WriteZeroes, Operation::Discard, Operation::Flush] {
        assert_eq!(watched.count(operation), 0, "{operation:?}");
    }
}

#[test]
fn what_is_a_hole_on_both_sides_is_never_read() {
    let size = 1 << 40;
    let (source, replica) = (MemoryDevice::new("source", size), MemoryDevice::new("replica", size));
    source.write_at(size / 2, &vec![1; CHUNK as usize]).expect("a write");
    let watched = [FaultDevice::new(Arc::new(source)), FaultDevice::new(Arc::new(replica))];
    let report = sync_range(&watched[0], &watched[1], 0, size, &options(2), &RUNNING).expect("a pass");
    assert_eq!((report.written_bytes, report.compared_bytes), (CHUNK, size));
    assert_eq!([watched[0].count(Operation::Read), watched[1].count(Operation::Read)], [1, 0]);
}

/// A disk that tells a test of every read and write before it does it.
struct Hooked<F: Fn(Operation, u64) + Send + Sync> {
    inner: Arc<MemoryDevice>,
    hook: F,
}

impl<F: Fn(Operation, u64) + Send + Sync> BlockDevice for Hooked<F> {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        512
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (self.hook)(Operation::Read, offset);
        self.inner.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        (self.hook)(Operation::Write, offset);
        self.inner.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.inner.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.inner.discard(offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.inner.extent_at(offset, end)
    }
}

#[test]
fn workers_share_a_range_and_the_first_difference_is_the_first_of_all() {
    for early in [0, SIZE / 4] {
        let (source, replica) = pair();
        replica.write_at(0, &source.bytes()[..early as usize + 512]).expect("an equal start");
        // The first batch waits for a second worker to have one of its own, so both have something to report.
        let others = AtomicU64::new(0);
        let hook = |operation, offset| match operation {
            Operation::Read if offset == 0 => {
                let begin = Instant::now();
                while others.load(Ordering::Relaxed) == 0 && begin.elapsed() < Duration::from_secs(20) {
                    std::thread::yield_now();
                }
            }
            _ => others.store(1, Ordering::Relaxed),
        };
        let hooked = Hooked { inner: source.clone(), hook };
        let dry = SyncOptions { dry_run: true, ..options(2) };
        let report = sync_range(&hooked, &*replica, 0, SIZE, &dry, &RUNNING).expect("a dry run");
        assert_eq!(report.first_difference, Some(early), "the chunk there differs behind its first sector");
        assert_eq!(report.different_bytes, SIZE / 4 * 3 + CHUNK - early);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_pass_stopped_anywhere_leaves_nothing_worse_and_the_next_one_ends_it(
        writes_left in 1..36u64, threads in 1..4usize,
    ) {
        let (source, replica) = pair();
        let before = replica.bytes();
        let (left, stop) = (AtomicU64::new(writes_left), AtomicBool::new(false));
        let hook = |operation, _| {
            let is_last = operation == Operation::Write && left.fetch_sub(1, Ordering::Relaxed) <= 1;
            stop.fetch_or(is_last, Ordering::Relaxed);
        };
        let stopping = Hooked { inner: replica.clone(), hook };
        let stopped = sync_range(&*source, &stopping, 0, SIZE, &options(threads), &stop);
        prop_assert_eq!(stopped.expect_err("stopped").code(), "ABORTED");
        prop_assert!(is_nowhere_worse(&source.bytes(), &before, &replica.bytes()));

        let rest = sync(&*source, &*replica, threads).expect("the rest");
        prop_assert!(rest.different_bytes < SIZE / 4 * 3 + CHUNK, "what was copied is not copied again");
        prop_assert!(source.bytes() == replica.bytes());
    }
}

#[test]
fn a_digest_says_which_read_failed() {
    let (source, _) = pair();
    let faulty = FaultDevice::new(source);
    faulty.arm(Fault::new(Operation::Read).inside((3 << 20)..(3 << 20) + 512).always().errno(libc::EIO));
    let mut out = vec![0; (SIZE / CHUNK) as usize * DIGEST_BYTES];
    let algorithm = DigestAlgorithm::Blake3;
    let answer = digest_ranges(&faulty, &[(0, SIZE)], CHUNK, algorithm, 0, &mut out, &RUNNING);
    assert_eq!(answer.expect_err("a bad sector").code(), "DISK_READ_FAILED");
    digest_ranges(&faulty, &[(0, 1 << 20), (4 << 20, 1 << 20)], CHUNK, algorithm, 0, &mut out, &RUNNING)
        .expect("the ranges beside it");
}

#[test]
fn a_source_that_shrank_is_an_error_and_its_replica_keeps_its_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = FileDevice::create(&folder.path().join("source"), SIZE).expect("an image");
    let replica = MemoryDevice::new("replica", SIZE);
    fill(&source, 0);
    fill(&replica, 0);
    let before = replica.bytes();
    source.file().set_len(SIZE / 2).expect("a truncation");
    for threads in [1, 2] {
        let error = sync(&source, &replica, threads).expect_err("half of the source is gone");
        assert_eq!(error.code(), "DISK_READ_FAILED");
    }
    assert!(replica.bytes() == before);
}

#[test]
fn a_file_truncated_under_a_loop_device_is_an_error_and_its_replica_keeps_its_bytes() {
    let test = "a_file_truncated_under_a_loop_device_is_an_error_and_its_replica_keeps_its_bytes";
    let folder = tempfile::tempdir().expect("a folder");
    let file = FileDevice::create(&folder.path().join("backing"), SIZE).expect("an image");
    fill(&file, 0);
    file.flush().expect("a flush");
    let device = match LoopDevice::over(&folder.path().join("backing"), 512) {
        Ok(device) => device,
        Err(reason) => return skip(test, &reason),
    };
    let source = FileDevice::open(&device.0, Access::ReadOnly).expect("the loop device");
    let replica = MemoryDevice::new("replica", SIZE);
    fill(&replica, 0);
    let before = replica.bytes();
    file.file().set_len(SIZE / 2).expect("a truncation");
    let error = sync(&source, &replica, 2).expect_err("half of the source is gone");
    assert_eq!(error.code(), "DISK_READ_FAILED");
    assert!(replica.bytes() == before);
}

#[test]
fn a_replica_on_a_full_file_system_says_so() {
    let small = match SmallFileSystem::new(4 << 20) {
        Ok(small) => small,
        Err(reason) => return skip("a_replica_on_a_full_file_system_says_so", &reason),
    };
    let source = MemoryDevice::new("source", SIZE);
    fill(&source, 0);
    let replica = FileDevice::create(&small.path().join("replica"), SIZE).expect("a sparse image");
    let error = sync(&source, &replica, 2).expect_err("12 MiB do not fit into 4");
    assert!(matches!(error, DiskError::Full(_)), "{error}");
    let mut bytes = vec![0; SIZE as usize];
    replica.read_at(0, &mut bytes).expect("the replica");
    assert!(is_nowhere_worse(&source.bytes(), &vec![0; SIZE as usize], &bytes));
}
