//! Batches: one order for many requests, each with its own fate.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation, PowerLossDevice};
use secondsite_disk::tracked::REGION_BYTES;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{
    Access, BatchAction, BatchRequest, BlockDevice, FileDevice, FlushMode, Mode, ResyncReason, cut,
};
use secondsite_hrl::faults::SplitMix;
use tracked_common::*;

fn request_of(request: &Request) -> BatchRequest<'_> {
    match request {
        Request::Write(offset, data) => BatchRequest::new(*offset, BatchAction::Write(data)),
        Request::Zeroes(offset, length_bytes) => {
            let action = BatchAction::WriteZeroes { length_bytes: *length_bytes, may_unmap: false };
            BatchRequest::new(*offset, action)
        }
        Request::Discard(offset, length_bytes) => {
            BatchRequest::new(*offset, BatchAction::Discard { length_bytes: *length_bytes })
        }
        Request::Flush => unreachable!("a flush is no request of a batch"),
    }
}

/// Requests within a few regions, so that they overlap, touch and repeat.
fn requests(random: &mut SplitMix, count: usize) -> Vec<Request> {
    let mut list = Vec::new();
    let mut end = 0;
    while list.len() < count {
        let offset = if random.next().is_multiple_of(2) { end } else { random.next() % 64 * 4096 };
        let length = 512 << (random.next() % 5);
        end = offset + length;
        list.push(match random.next() % 8 {
            0 => Request::Zeroes(offset, length),
            1 => Request::Discard(offset, length),
            _ => Request::Write(offset, vec![random.next() as u8; length as usize]),
        });
    }
    list
}

fn codes(results: &[secondsite_disk::Result<()>]) -> Vec<Option<&'static str>> {
    results.iter().map(|result| result.as_ref().err().map(secondsite_disk::DiskError::code)).collect()
}

#[test]
fn a_batch_is_its_requests_one_after_the_other_on_disk_and_replica() {
    for seed in 0..30 {
        let mut random = SplitMix(seed);
        let (device, files) =
            (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
        let disk = open(device.clone(), options(&files, "boot", seed)).0;
        let mut model = vec![0; DISK_BYTES as usize];
        for _ in 0..4 {
            let count = 1 + random.next() as usize % 600;
            let list = requests(&mut random, count);
            let batch: Vec<_> = list.iter().map(request_of).collect();
            assert!(disk.write_batch(&batch).iter().all(Result::is_ok), "seed {seed}");
            list.iter().for_each(|request| request.apply(&mut model));
        }
        assert_same(&device.bytes(), &model, &format!("seed {seed}: disk and oracle"));
        assert_eq!(Replica::new().converge(&files, &disk), 0);
    }
}

#[test]
fn a_batch_larger_than_any_step_and_a_request_larger_than_the_regions_are_cut() {
    let size = 64 * REGION_BYTES;
    let files = Arc::new(MemoryTrackFiles::new());
    let mut options = options(&files, "boot", 1);
    options.active_region_count_max = 4;
    let device = Arc::new(MemoryDevice::new("disk", size));
    let disk = open(device.clone(), options).0;
    // One sector in each region: more regions than may be active at once, and then all of the disk.
    let mut batch: Vec<_> =
        (0..64).map(|n| BatchRequest::new(n * REGION_BYTES, BatchAction::Write(&[7; 512]))).collect();
    batch.push(BatchRequest::new(512, BatchAction::Discard { length_bytes: size - 512 }));
    let big = vec![9; 3 * REGION_BYTES as usize];
    batch.push(BatchRequest::new(REGION_BYTES - 512, BatchAction::Write(&big)));
    assert!(disk.write_batch(&batch).iter().all(Result::is_ok));
    assert!(disk.status().active_region_count <= 4);
    assert_eq!((disk.status().mode, disk.status().resync_reason), (Mode::Logging, None));
    let found = device.bytes();
    assert_eq!(found[..512], [7; 512]);
    assert!(found[512..REGION_BYTES as usize - 512].iter().all(|byte| *byte == 0));
    assert_eq!(found[REGION_BYTES as usize - 512..][..big.len()], big);
}

#[test]
fn each_request_learns_its_own_fate_and_what_failed_is_compared() {
    let (memory, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let device = Arc::new(FaultDevice::new(memory));
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    device.arm(Fault::new(Operation::Write).inside(1024..1536).always().errno(libc::ENOSPC));
    let write = |offset, data| BatchRequest::new(offset, BatchAction::Write(data));
    let results = disk.write_batch(&[
        write(512, &[1; 512]),
        write(1024, &[2; 512]), // Beside its neighbours: one write to the disk for all three.
        write(1536, &[3; 512]),
        write(DISK_BYTES, &[4; 512]),
        write(100, &[5; 512]),
        write(4096, &[]),
        write(8192, &[6; 512]),
    ]);
    let outside = Some("DISK_OUT_OF_RANGE");
    assert_eq!(codes(&results), [None, Some("DISK_FULL"), None, outside, outside, outside, None]);
    device.disarm();
    assert_eq!(disk.status().resync_reason, Some(ResyncReason::DiskWriteFailed));
    let found = read_all(disk.as_ref());
    assert_eq!([found[512], found[1024], found[1536], found[8192]], [1, 0, 3, 6]);
    Replica::new().converge(&files, &disk);
}

#[test]
fn what_asked_to_be_durable_is_durable_and_shares_one_flush() {
    for mode in [FlushMode::Disk, FlushMode::Log] {
        let inner = Arc::new(PowerLossDevice::new("disk", DISK_BYTES));
        let device = Arc::new(FaultDevice::new(inner.clone()));
        let files = Arc::new(MemoryTrackFiles::new());
        let disk = open(device.clone(), with_mode(options(&files, "one", 1), mode)).0;
        let before = device.count(Operation::Flush);
        let durable = |offset, data| BatchRequest {
            is_durable: true,
            ..BatchRequest::new(offset, BatchAction::Write(data))
        };
        let batch = [durable(0, &[1; 512]), durable(8192, &[2; 512])];
        assert_eq!(codes(&disk.write_batch(&batch)), [None, None]);
        let flushes = device.count(Operation::Flush) - before;
        assert_eq!(flushes, u64::from(mode == FlushMode::Disk), "{mode:?}");
        drop((disk, device));
        let device = Arc::new(inner.crash(0));
        let files = Arc::new(files.lose_power(3));
        let disk = open(device, with_mode(options(&files, "two", 2), mode)).0;
        let found = read_all(disk.as_ref());
        assert_eq!([found[0], found[8192]], [1, 2], "{mode:?}");
    }
}

#[test]
fn a_flush_that_fails_fails_those_who_asked_for_it() {
    let memory = Arc::new(MemoryDevice::new("disk", DISK_BYTES));
    let device = Arc::new(FaultDevice::new(memory));
    let disk = open(device.clone(), options(&Arc::new(MemoryTrackFiles::new()), "boot", 1)).0;
    device.arm(Fault::new(Operation::Flush).always());
    let asks = |is_durable, offset| BatchRequest {
        is_durable,
        ..BatchRequest::new(offset, BatchAction::Write(&[1; 512]))
    };
    let results = disk.write_batch(&[asks(true, 0), asks(false, 512), asks(true, 1024)]);
    assert_eq!(codes(&results), [Some("DISK_SYNC_FAILED"), None, Some("DISK_SYNC_FAILED")]);
}

#[test]
fn a_full_log_disk_takes_a_whole_batch_to_the_map() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let disk = open(device, options(&files, "boot", 1)).0;
    files.set_full(true);
    let list = requests(&mut SplitMix(4), 300);
    let batch: Vec<_> = list.iter().map(request_of).collect();
    assert!(disk.write_batch(&batch).iter().all(Result::is_ok));
    assert_eq!(disk.status().resync_reason, Some(ResyncReason::LogDiskFull));
    files.set_full(false);
    Replica::new().converge(&files, &disk);
}

struct Died;

#[test]
fn death_at_any_step_of_batches_needs_no_resync() {
    let list: Vec<Vec<Request>> = (0..3).map(|seed| requests(&mut SplitMix(seed), 300)).collect();
    for fatal in 0.. {
        let (device, files) =
            (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
        let count = AtomicU64::new(0);
        let mut dying = options(&files, "boot", fatal);
        dying.steps = Some(Arc::new(move |_| {
            if count.fetch_add(1, Ordering::Relaxed) == fatal {
                resume_unwind(Box::new(Died));
            }
        }));
        let mut acknowledged = 0;
        let died = catch_unwind(AssertUnwindSafe(|| {
            let disk = open(device.clone(), dying).0;
            for requests in &list {
                let batch: Vec<_> = requests.iter().map(request_of).collect();
                assert!(disk.write_batch(&batch).iter().all(Result::is_ok));
                acknowledged += 1;
                cut(std::slice::from_ref(&disk)).unwrap();
            }
        }));
        match died {
            Ok(()) => {
                assert!(fatal > 20, "only {fatal} steps");
                return;
            }
            Err(e) if !e.is::<Died>() => resume_unwind(e),
            Err(_) => {}
        }
        let disk = open(device.clone(), options(&files, "boot", 1000 + fatal)).0;
        let mut model = vec![0; DISK_BYTES as usize];
        list[..acknowledged].iter().flatten().for_each(|request| request.apply(&mut model));
        // Of the batch in flight a prefix of its steps is there.
        let left: Vec<&Request> = list.get(acknowledged).into_iter().flatten().collect();
        let found = device.bytes();
        let is_prefix = left.chunks(256).any(|step| {
            let is_equal = found == model;
            step.iter().for_each(|request| request.apply(&mut model));
            is_equal
        });
        assert!(is_prefix || found == model, "death at step {fatal}");
        assert_eq!(Replica::new().converge(&files, &disk), 0, "death at step {fatal}");
    }
}

#[test]
fn what_was_just_written_is_read_without_waiting_and_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.raw");
    drop(FileDevice::create(&path, 1 << 20).unwrap());
    let device = FileDevice::open(&path, Access::Exclusive).unwrap();
    let halves = [vec![1; 4096], vec![2; 512], vec![3; 4096]];
    let slices: Vec<_> = halves.iter().map(|half| std::io::IoSlice::new(half)).collect();
    device.write_vectored_at(512, &slices).unwrap();
    let (mut waited, mut cached) = (vec![0; 8704], vec![0; 8704]);
    device.read_at(512, &mut waited).unwrap();
    assert_eq!(waited, halves.concat());
    if device.read_cached(512, &mut cached).unwrap() {
        assert_eq!(cached, waited);
    }
    assert_eq!(device.read_cached(1 << 20, &mut cached).unwrap_err().code(), "DISK_OUT_OF_RANGE");
    assert_eq!(device.write_vectored_at((1 << 20) - 512, &slices).unwrap_err().code(), "DISK_OUT_OF_RANGE");
}
