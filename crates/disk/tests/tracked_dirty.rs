//! What was written since the last acknowledged cut, over cuts, releases, restarts, maps and resynchronizations.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod tracked_common;

use std::sync::Arc;

use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::tracked::CHUNK_BYTES;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{BlockDevice, ResyncReason, TrackedDisk, cut};
use tracked_common::*;

/// The chunks that are dirty, by number.
fn dirty(disk: &TrackedDisk) -> Vec<u64> {
    let ranges = disk.dirty(0, DISK_BYTES);
    ranges.iter().flat_map(|&(at, length)| at / CHUNK_BYTES..(at + length).div_ceil(CHUNK_BYTES)).collect()
}

fn write(disk: &TrackedDisk, chunk: u64) {
    disk.write_at(chunk * CHUNK_BYTES + 512, &[1; 512]).unwrap();
}

#[test]
fn dirty_is_what_no_released_log_holds() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let disk = open(device.clone(), options(&files, "boot", 1)).0;
    assert_eq!(dirty(&disk), []);
    for chunk in [3, 5, 7] {
        write(&disk, chunk);
        cut(std::slice::from_ref(&disk)).unwrap();
    }
    write(&disk, 5);
    write(&disk, 9);
    assert_eq!(dirty(&disk), [3, 5, 7, 9], "a cut alone acknowledges nothing");
    let ids: Vec<_> = disk.unreleased_logs().iter().map(|log| log.sealed.id).collect();
    disk.release_logs(&ids[..2]).unwrap();
    assert_eq!(dirty(&disk), [5, 7, 9], "chunk 5 was written again");
    drop(disk);
    let disk = open(device.clone(), options(&files, "boot", 2)).0;
    assert_eq!(dirty(&disk), [5, 7, 9], "after the death of the process");
    disk.close().unwrap();
    drop(disk);
    let disk = open(device, options(&files, "boot", 3)).0;
    assert_eq!(dirty(&disk), [5, 7, 9], "after a close");
    assert_eq!(disk.dirty(6 * CHUNK_BYTES + 512, CHUNK_BYTES), [(7 * CHUNK_BYTES, 512)], "a window");
    Replica::new().cycle(&files, &disk, false);
    assert_eq!(dirty(&disk), []);
}

#[test]
fn what_only_a_map_knows_is_dirty_until_the_resynchronization_ends() {
    let (device, files) =
        (Arc::new(MemoryDevice::new("disk", DISK_BYTES)), Arc::new(MemoryTrackFiles::new()));
    let disk = open(device, options(&files, "boot", 1)).0;
    write(&disk, 1);
    cut(std::slice::from_ref(&disk)).unwrap();
    write(&disk, 2);
    disk.fold_logs_to_map(ResyncReason::LogThreshold).unwrap();
    write(&disk, 3);
    assert_eq!(dirty(&disk), [1, 2, 3]);
    disk.begin_resync().unwrap();
    write(&disk, 4);
    assert_eq!(dirty(&disk), [1, 2, 3, 4]);
    Replica::new().cycle(&files, &disk, true);
    assert_eq!(dirty(&disk), [1, 2, 3], "candidates are not equal yet");
    disk.finish_resync().unwrap();
    assert_eq!(dirty(&disk), []);
}
