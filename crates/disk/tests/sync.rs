//! Synchronization: whatever two disks hold, afterwards they hold the same, and the report says what was done.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use secondsite_disk::{
    Access, BlockDevice, ExtentKind, FileDevice, SyncOptions, SyncReport, extents, sync_range,
};

const CHUNK: u64 = 16 << 10;
const SIZE: u64 = 40 * CHUNK + 3 * 512;
static RUNNING: AtomicBool = AtomicBool::new(false);

fn options(threads: usize, dry_run: bool) -> SyncOptions {
    SyncOptions { chunk_bytes: CHUNK, dry_run, threads }
}

fn image(dir: &Path, name: &str) -> FileDevice {
    FileDevice::create(&dir.join(name), SIZE).expect("an image")
}

fn bytes_of(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).expect("the whole disk");
    bytes
}

fn sync(source: &dyn BlockDevice, replica: &dyn BlockDevice, options: &SyncOptions) -> SyncReport {
    sync_range(source, replica, 0, source.size_bytes(), options, &RUNNING).expect("a pass")
}

/// One change of one side: sectors, and what they become.
#[derive(Debug, Clone)]
enum Change {
    Write { sector: u64, sectors: u64, fill: u8 },
    Punch { sector: u64, sectors: u64 },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = (0..SIZE / 512, 1..100u64).prop_map(|(sector, n)| (sector, n.min(SIZE / 512 - sector)));
    let write = (place.clone(), 0..3u8);
    let write = write.prop_map(|((sector, sectors), fill)| Change::Write { sector, sectors, fill });
    let punch = place.prop_map(|(sector, sectors)| Change::Punch { sector, sectors });
    proptest::collection::vec(prop_oneof![3 => write, 1 => punch], 0..12)
}

fn change(device: &dyn BlockDevice, changes: &[Change]) {
    for change in changes {
        match *change {
            Change::Write { sector, sectors, fill } => {
                device.write_at(sector * 512, &vec![fill; sectors as usize * 512]).expect("a write");
            }
            Change::Punch { sector, sectors } => {
                device.discard(sector * 512, sectors * 512).expect("a hole");
            }
        }
    }
}

/// Differing bytes in whole chunks and the first of them, found by comparing bytes.
fn difference(source: &[u8], replica: &[u8], offset: u64) -> (u64, Option<u64>) {
    let pairs = source.chunks(CHUNK as usize).zip(replica.chunks(CHUNK as usize)).enumerate();
    let differing: Vec<(u64, u64)> = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(index, (a, _))| (offset + index as u64 * CHUNK, a.len() as u64))
        .collect();
    (differing.iter().map(|(_, length)| length).sum(), differing.first().map(|(at, _)| *at))
}

/// Bytes to write and to punch: differing blocks of 4 KiB in a chunk, found by comparing bytes.
fn copied_bytes(source: &[u8], replica: &[u8]) -> (u64, u64) {
    let (mut written, mut punched) = (0, 0);
    for (source, replica) in source.chunks(CHUNK as usize).zip(replica.chunks(CHUNK as usize)) {
        let blocks = source.chunks(4096).zip(replica.chunks(4096));
        for (block, _) in blocks.filter(|(block, other)| block != other) {
            let is_zero = block.iter().all(|byte| *byte == 0);
            *(if is_zero { &mut punched } else { &mut written }) += block.len() as u64;
        }
    }
    (written, punched)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_pair_becomes_equal(
        common in changes(), of_source in changes(), of_replica in changes(),
        threads in 1..4usize,
        from in 0..SIZE / 512, sectors in 1..SIZE / 512,
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let (source, replica) = (image(dir.path(), "source").for_scans(), image(dir.path(), "replica"));
        change(&source, &common);
        change(&replica, &common);
        change(&source, &of_source);
        change(&replica, &of_replica);
        let options = options(threads, false);
        let (before, source_before) = (bytes_of(&replica), bytes_of(&source));

        let offset = from * 512;
        let length = (sectors * 512).min(SIZE - offset);
        let range = offset as usize..(offset + length) as usize;
        let (different, first) = difference(&source_before[range.clone()], &before[range.clone()], offset);

        let dry = SyncOptions { dry_run: true, ..options };
        let found = sync_range(&source, &replica, offset, length, &dry, &RUNNING).expect("a dry run");
        prop_assert_eq!(&bytes_of(&replica), &before, "a dry run writes nothing");
        prop_assert_eq!(found, SyncReport {
            compared_bytes: length,
            equal_bytes: length - different,
            different_bytes: different,
            written_bytes: 0,
            punched_bytes: 0,
            first_difference: first,
        });

        let done = sync_range(&source, &replica, offset, length, &options, &RUNNING).expect("a pass");
        let copied = copied_bytes(&source_before[range.clone()], &before[range.clone()]);
        prop_assert_eq!((done.written_bytes, done.punched_bytes), copied);
        prop_assert_eq!((done.different_bytes, done.first_difference), (different, first));
        let after = bytes_of(&replica);
        prop_assert_eq!(&after[range.clone()], &source_before[range.clone()]);
        prop_assert_eq!(&after[..range.start], &before[..range.start], "nothing before the range is touched");
        prop_assert_eq!(&after[range.end..], &before[range.end..], "nothing behind it either");
        prop_assert_eq!(bytes_of(&source), source_before, "the source is only read");
        let again = sync_range(&source, &replica, offset, length, &dry, &RUNNING).expect("a second look");
        prop_assert_eq!(again.equal_bytes, length);
    }
}

#[test]
fn holes_and_zeros_of_the_source_are_holes_of_the_replica() {
    let dir = tempfile::tempdir().expect("a folder");
    let (source, replica) = (image(dir.path(), "source"), image(dir.path(), "replica"));
    replica.write_at(0, &vec![7; SIZE as usize]).expect("a full replica");
    source.write_at(4 * CHUNK, &vec![0; CHUNK as usize]).expect("zeros stored as data");
    source.write_at(8 * CHUNK, &vec![9; CHUNK as usize]).expect("data");

    let report = sync(&source, &replica, &options(2, false));

    assert_eq!((report.written_bytes, report.punched_bytes), (CHUNK, SIZE - CHUNK));
    let whole_blocks = SIZE / 4096 * 4096; // A file system keeps the block in which the file ends.
    let data = extents(&replica, 0, whole_blocks).expect("extents");
    let data: Vec<_> = data.into_iter().filter(|extent| extent.kind == ExtentKind::Data).collect();
    assert_eq!(data.len(), 1, "{data:?}");
    assert_eq!((data[0].offset, data[0].length_bytes), (8 * CHUNK, CHUNK));
}

#[test]
fn zeros_stored_as_data_are_no_difference_to_a_hole() {
    let dir = tempfile::tempdir().expect("a folder");
    let (source, replica) = (image(dir.path(), "source"), image(dir.path(), "replica"));
    source.write_at(0, &vec![0; SIZE as usize]).expect("zeros stored as data");

    for threads in [1, 2] {
        assert_eq!(sync(&source, &replica, &options(threads, false)).different_bytes, 0);
        assert_eq!(sync(&replica, &source, &options(threads, false)).different_bytes, 0);
    }
    let holes = extents(&replica, 0, SIZE).expect("extents");
    assert!(holes.iter().all(|extent| extent.kind == ExtentKind::Hole), "nothing was stored: {holes:?}");
}

#[test]
fn a_replica_open_for_reading_can_be_compared_but_not_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = image(dir.path(), "source");
    source.write_at(0, &[1; 512]).expect("a write");
    drop(image(dir.path(), "replica"));
    let replica = FileDevice::open(&dir.path().join("replica"), Access::ReadOnly).expect("a disk");

    assert_eq!(sync(&source, &replica, &options(2, true)).first_difference, Some(0));
    let refused = sync_range(&source, &replica, 0, SIZE, &options(2, false), &RUNNING);
    assert_eq!(refused.expect_err("read-only").code(), "DISK_READ_ONLY");
}

#[test]
fn a_range_outside_of_one_of_the_disks_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = image(dir.path(), "source");
    let replica = FileDevice::create(&dir.path().join("small"), SIZE - 512).expect("an image");
    for (a, b) in [(&source, &replica), (&replica, &source)] {
        let refused = sync_range(a, b, 0, SIZE, &options(1, true), &RUNNING);
        assert_eq!(refused.expect_err("too small").code(), "DISK_OUT_OF_RANGE");
    }
}

#[test]
fn stopped_before_the_start_means_nothing_is_done() {
    let dir = tempfile::tempdir().expect("a folder");
    let (source, replica) = (image(dir.path(), "source"), image(dir.path(), "replica"));
    source.write_at(0, &vec![1; SIZE as usize]).expect("a write");
    let stop = AtomicBool::new(false);
    stop.store(true, Ordering::Relaxed);
    for threads in [1, 2] {
        let stopped = sync_range(&source, &replica, 0, SIZE, &options(threads, false), &stop);
        assert_eq!(stopped.expect_err("stopped").code(), "ABORTED");
    }
    assert!(bytes_of(&replica).iter().all(|byte| *byte == 0));
}
