//! Entries of a sealed log by their number: the same as those met on the way through it, or a named damage.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use secondsite_hrl::{
    Append, Entry, FsLogFile, LogId, LogOptions, LogReader, LogWriter, ReadOptions, index_path,
};

const COUNT: u64 = 150;
/// Where the records of an index begin, and how long they are (docs/spec/hrl.md).
const RECORDS_AT: usize = 4096;
const RECORD_BYTES: usize = 64;

fn sealed(folder: &Path) -> PathBuf {
    let path = folder.join("a.hrl");
    let options = LogOptions {
        id: LogId([1; 16]),
        previous_id: LogId::NONE,
        disk_id: [2; 16],
        created_ns: 5,
        first_sequence: 1000,
        key: [3; 32],
        keep_space: false,
    };
    let index = FsLogFile::create_new(&index_path(&path)).unwrap();
    let mut writer = LogWriter::create(FsLogFile::create_new(&path).unwrap(), index, options).unwrap();
    for number in 0..COUNT {
        let data = [number as u8; 512];
        let append = match number % 3 {
            0 => Append::discard(number * 4096, 4096, 1),
            _ => Append::write(number * 4096, &data, 1),
        };
        writer.append(&[append]).unwrap();
    }
    writer.seal(9).unwrap();
    path
}

#[test]
fn entries_by_number_are_those_of_the_walk_and_end_with_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let reader = LogReader::open(&sealed(folder.path())).unwrap();
    let mut walked: Vec<Entry> = Vec::new();
    let visit = |entry: &Entry| {
        walked.push(*entry);
        Ok(())
    };
    reader.entries().unwrap().for_each(visit).unwrap();
    let mut batch = Vec::new();
    for (first, count, expected) in
        [(0, 3, 0..3), (149, 64, 149..150), (70, 64, 70..134), (0, 10_000, 0..150)]
    {
        reader.read_entries(first, count, &mut batch).unwrap();
        assert_eq!(batch, walked[expected], "{count} from {first} on");
    }
    for first in [150, u64::MAX] {
        reader.read_entries(first, 1, &mut batch).unwrap();
        assert_eq!(batch, []);
    }
}

#[test]
fn a_damaged_record_is_named_and_those_before_it_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = sealed(folder.path());
    let index = index_path(&path);
    let content = std::fs::read(&index).unwrap();
    for at in 0..RECORD_BYTES {
        let mut bad = content.clone();
        bad[RECORDS_AT + 100 * RECORD_BYTES + at] ^= 1;
        std::fs::write(&index, bad).unwrap();
        let reader = LogReader::open(&path).unwrap();
        let mut batch = Vec::new();
        let error = reader.read_entries(64, 64, &mut batch).unwrap_err();
        assert_eq!(error.code(), "LOG_CORRUPT", "byte {at}");
        assert_eq!((error.place().path.as_path(), error.place().offset), (index.as_path(), 4096 + 6400));
        reader.read_entries(0, 100, &mut batch).unwrap();
        assert_eq!(batch.len(), 100);
    }
}

#[test]
fn a_record_of_another_place_is_not_taken_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = sealed(folder.path());
    let index = index_path(&path);
    let mut content = std::fs::read(&index).unwrap();
    let (a, b) = (RECORDS_AT, RECORDS_AT + RECORD_BYTES);
    let first = content[a..b].to_vec();
    content[b..b + RECORD_BYTES].copy_from_slice(&first);
    std::fs::write(&index, content).unwrap();
    let reader = LogReader::open(&path).unwrap();
    assert_eq!(reader.read_entries(0, 64, &mut Vec::new()).unwrap_err().code(), "LOG_CORRUPT");
}

#[test]
fn without_the_index_there_are_no_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = sealed(folder.path());
    let options = ReadOptions { ignore_index: true, ..ReadOptions::default() };
    let reader = LogReader::open_with(&path, options).unwrap();
    assert_eq!(reader.read_entries(0, 1, &mut Vec::new()).unwrap_err().code(), "LOG_INDEX_MISSING");
}
