//! Real disks and logs fail by a rule of the process-wide table, with the codes that a real failure has.

use std::path::Path;

use secondsite_disk::{Access, BlockDevice, FileDevice};
use secondsite_hrl::faults::rules::{FaultRule, FileOperation, arm, disarm, strikes};
use secondsite_hrl::{FsLogFile, LogFile, sync_folder};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const SIZE: u64 = 64 * 1024;

/// A rule in force until the end of the test.
struct Armed(u32);

impl Armed {
    fn new(rule: FaultRule) -> Self {
        Self(arm(rule).expect("room for a rule"))
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        disarm(self.0);
    }
}

fn disk(folder: &Path) -> FileDevice {
    FileDevice::create(&folder.join("os.raw"), SIZE).expect("an image")
}

#[test]
fn a_disk_that_becomes_full_keeps_the_first_part_of_the_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = disk(folder.path());
    let full = Armed::new(FaultRule::new(folder.path(), FileOperation::Write, ENOSPC).after_bytes(1536));
    disk.write_at(0, &[1; 1024]).expect("there is room");
    let error = disk.write_at(1024, &[2; 1024]).expect_err("there is none");
    assert_eq!((error.code(), error.place().map(|place| place.offset)), ("DISK_FULL", Some(1024)));
    assert_eq!(disk.write_zeroes(0, 512, false).map_err(|e| e.code()), Err("DISK_FULL"));
    assert_eq!(strikes(full.0), 2);
    drop(full);
    let mut expected = vec![0; SIZE as usize];
    expected[..1024].fill(1);
    expected[1024..1536].fill(2);
    let mut content = vec![9; SIZE as usize];
    disk.read_at(0, &mut content).expect("a read");
    assert_eq!(content, expected);
}

#[test]
fn a_bad_sector_fails_reads_of_it_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = disk(folder.path());
    let _bad = Armed::new(FaultRule::new(disk.path(), FileOperation::Read, EIO).inside(4096..4608));
    let read = |offset, length| disk.read_at(offset, &mut vec![0; length]).map_err(|error| error.code());
    assert_eq!(read(0, 4096), Ok(()));
    assert_eq!(read(4096, 512), Err("DISK_READ_FAILED"));
    assert_eq!(read(0, 8192), Err("DISK_READ_FAILED"));
    assert_eq!(read(4608, 512), Ok(()));
}

#[test]
fn a_failed_flush_is_never_believed_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = disk(folder.path());
    let once = Armed::new(FaultRule::new(disk.path(), FileOperation::Sync, EIO).times(1));
    assert_eq!(disk.flush().map_err(|error| error.code()), Err("DISK_SYNC_FAILED"));
    drop(once);
    assert_eq!(disk.flush().map_err(|error| error.code()), Err("DISK_SYNC_FAILED"));
}

#[test]
fn opening_and_sizing_fail_with_the_code_of_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("os.raw");
    let no_room = Armed::new(FaultRule::new(&path, FileOperation::Truncate, ENOSPC));
    assert_eq!(FileDevice::create(&path, SIZE).map_err(|error| error.code()).err(), Some("DISK_FULL"));
    drop(no_room);
    std::fs::write(&path, vec![0; SIZE as usize]).expect("an image");
    let _bad = Armed::new(FaultRule::new(&path, FileOperation::Open, EIO));
    let opened = FileDevice::open(&path, Access::ReadOnly).map_err(|error| error.code());
    assert_eq!(opened.err(), Some("DISK_READ_FAILED"));
}

#[test]
fn a_log_file_fails_in_each_operation() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.hrl");
    let file = FsLogFile::create_new(&path).expect("a log file");
    let errno = |result: std::io::Result<()>| result.map_err(|error| error.raw_os_error());
    let full = Armed::new(FaultRule::new(folder.path(), FileOperation::Write, ENOSPC).after_bytes(3));
    let mut slices = [std::io::IoSlice::new(b"ab"), std::io::IoSlice::new(b"cd")];
    assert_eq!(errno(file.write_all_at(&mut slices, 0)), Err(Some(ENOSPC)));
    drop(full);
    assert_eq!(std::fs::read(&path).expect("a file"), b"abc");
    let _sync = Armed::new(FaultRule::new(folder.path(), FileOperation::Sync, EIO));
    let _size = Armed::new(FaultRule::new(&path, FileOperation::Truncate, EIO));
    let _read = Armed::new(FaultRule::new(&path, FileOperation::Read, EIO));
    assert_eq!(errno(file.sync_data()), Err(Some(EIO)));
    assert_eq!(errno(file.set_size_bytes(9)), Err(Some(EIO)));
    assert_eq!(errno(file.read_exact_at(&mut [0; 1], 0)), Err(Some(EIO)));
    assert_eq!(sync_folder(folder.path()).map_err(|error| error.code()), Err("LOG_WRITE_FAILED"));
}
