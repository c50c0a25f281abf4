//! Listing a log that is not as it must be: everything readable comes out, then what stopped it and where.
#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogWriter, list_entries};

const TIME_NS: u64 = 1_700_000_000_000_000_000;
/// An index has a header of 4096 bytes, then 64 bytes a record (docs/spec/hrl.md).
const RECORD_10: u64 = 4096 + 10 * 64;

/// A log of `count` writes of one sector, entry n at n * 4096; sealed or as a dead process leaves it.
fn log(folder: &Path, count: u64, seal: bool) -> (PathBuf, PathBuf) {
    let (path, index) = (folder.join("a.hrl"), folder.join("a.hrx"));
    let options = LogOptions {
        id: LogId([1; 16]),
        previous_id: LogId::NONE,
        disk_id: [2; 16],
        created_ns: TIME_NS,
        first_sequence: 10,
        key: [3; 32],
        keep_space: false,
    };
    let files = (FsLogFile::create_new(&path).unwrap(), FsLogFile::create_new(&index).unwrap());
    let mut writer = LogWriter::create(files.0, files.1, options).unwrap();
    for n in 0..count {
        writer.append(&[Append::write(n * 4096, &[n as u8; 512], TIME_NS + n)]).unwrap();
    }
    if seal {
        writer.seal(TIME_NS).unwrap();
    }
    (path, index)
}

fn listed(path: &Path) -> (Vec<u64>, Option<&'static str>) {
    let mut offsets = Vec::new();
    let outcome = list_entries(path, &mut |batch| {
        offsets.extend(batch.iter().map(|entry| entry.offset));
        true
    });
    (offsets, outcome.err().map(|error| error.code()))
}

fn expected(count: u64) -> Vec<u64> {
    (0..count).map(|n| n * 4096).collect()
}

fn spoil(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[test]
fn a_good_log_lists_every_entry_once() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = log(folder.path(), 9000, true);
    assert_eq!(listed(&path), (expected(9000), None));
}

#[test]
fn a_log_that_a_dead_process_left_open_lists_what_recovery_would_keep() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = log(folder.path(), 5000, false);
    assert_eq!(listed(&path), (expected(5000), None));
}

#[test]
fn a_rotten_record_hides_no_other_entry_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = log(folder.path(), 300, true);
    spoil(&index, RECORD_10);
    assert_eq!(listed(&path), (expected(300), Some("LOG_CORRUPT")));
}

#[test]
fn a_foreign_index_leaves_the_blocks_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = log(folder.path(), 300, true);
    OpenOptions::new().write(true).open(&index).unwrap().set_len(RECORD_10).unwrap();
    assert_eq!(listed(&path), (expected(300), Some("LOG_INDEX_MISMATCH")));
}

#[test]
fn rotten_index_and_rotten_blocks_still_give_what_came_before_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = log(folder.path(), 300, true);
    spoil(&index, RECORD_10);
    let end = std::fs::metadata(&path).unwrap().len();
    for block in (4096..end).step_by(512) {
        spoil(&path, block); // Blocks and data alike: no block of it can be proven any more.
    }
    assert_eq!(listed(&path), (expected(10), Some("LOG_CORRUPT")));
}

#[test]
fn an_open_log_without_its_index_says_that_nothing_can_be_found() {
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = log(folder.path(), 3, false);
    std::fs::remove_file(index).unwrap();
    assert_eq!(listed(&path), (Vec::new(), Some("LOG_NOT_SEALED")));
}

#[test]
fn a_reader_that_has_enough_ends_the_walk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = log(folder.path(), 9000, true);
    let mut batches = 0;
    list_entries(&path, &mut |_| {
        batches += 1;
        false
    })
    .unwrap();
    assert_eq!(batches, 1);
}
