//! Golden logs (`test/vectors/hrl`), and a second, slow reader written from the public text alone: what our writer
//! makes, it must be able to walk, and what it says, our reader must say.
#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use secondsite_hrl::faults::SplitMix;
use secondsite_hrl::{
    ChainLink, Entry, FsLogFile, LogId, LogReader, LogWriter, Operation, export_strict, inspect, verify,
    verify_chain,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/vectors/hrl").join(name)
}

/// [MS-HRL] read byte by byte: (offset, length, operation, data) of each entry.
fn slow_reader(log: &[u8]) -> Vec<(u64, u64, u8, Vec<u8>)> {
    let number = |at: usize, size: usize| (0..size).rev().fold(0u64, |n, i| n * 256 + u64::from(log[at + i]));
    let checked = |start: usize, size: usize, field: usize| {
        let bytes = (start..start + size).filter(|i| !(start + field..start + field + 4).contains(i));
        let sum: u64 = bytes.map(|i| u64::from(log[i])).sum();
        assert_eq!(number(start + field, 4), !sum & 0xFFFF_FFFF, "checksum of {size} bytes at {start}");
    };
    assert_eq!(&log[..8], b"msctlog ");
    checked(0, 4096, 40);
    let block_size = number(56, 4) as usize;
    let mut block = number(44, 8) as usize - block_size;
    let mut blocks = vec![block];
    while number(block, 8) != 0 {
        block -= number(block, 8) as usize;
        blocks.push(block);
    }
    let (mut entries, mut data) = (Vec::new(), 4096);
    for block in blocks.into_iter().rev() {
        checked(block, 32, 12);
        for slot in (1..=number(block + 8, 4) as usize).map(|n| block + 32 * n) {
            checked(slot, 32, 8);
            let (offset, length, operation) = (number(slot, 8), number(slot + 12, 4), log[slot + 20]);
            let stored = if operation == 1 { length as usize } else { 0 };
            entries.push((offset, length, operation, log[data..data + stored].to_vec()));
            data += stored;
        }
        assert_eq!(data, block, "the data fills the gap before the block exactly");
        data = block + block_size;
    }
    assert_eq!(entries.len() as u64, number(96, 8));
    entries
}

fn read_all(path: &Path) -> Vec<(Entry, Vec<u8>)> {
    let reader = LogReader::open(path).unwrap();
    let mut all = Vec::new();
    let collect = |entry: &Entry| {
        let mut data = vec![0; entry.data_bytes() as usize];
        reader.read_data(entry, &mut data)?;
        all.push((*entry, data));
        Ok(())
    };
    reader.entries().unwrap().for_each(collect).unwrap();
    all
}

fn assert_hyperv_entries(path: &Path, count: u64) {
    let entries = read_all(path);
    assert_eq!(entries.len() as u64, count);
    for (n, (entry, data)) in (0u64..).zip(&entries) {
        let expected: Vec<u8> = (0..16 + n % 25).map(|i| (7 * n + i) as u8).collect();
        assert_eq!(data, &expected, "entry {n}");
        assert_eq!((entry.offset, entry.operation), (3_626_340_352 + 8192 * n, Operation::Write));
        // 2017-02-08T04:13:00Z is 1486527180.
        assert_eq!(entry.time_ns, (1_486_527_180 + n / 100) * 1_000_000_000);
        assert_eq!((entry.sequence, entry.data_checksum, entry.data_hash), (n, 0, None));
    }
}

#[test]
fn a_hyperv_log_with_full_blocks_reads_back() {
    let path = golden("hyperv-v2.hrl");
    assert_hyperv_entries(&path, 300);
    let header = LogReader::open(&path).unwrap().header().clone();
    assert_eq!((header.id, header.previous_id), (LogId([0xA1; 16]), LogId([0xA0; 16])));
    assert_eq!(header.disk_id, Some([0xD1; 16]));
    assert_eq!(header.creator_application, *b"ct\0\0");
    assert_eq!(verify(&path, None).unwrap().entry_count, 300);
    assert!(inspect(&path).unwrap().damage.is_empty());
    assert_eq!(slow_reader(&std::fs::read(&path).unwrap()).len(), 300);
}

#[test]
fn a_version_1_log_with_data_first_and_small_blocks_reads_back() {
    let path = golden("hyperv-v1-data-first.hrl");
    assert_hyperv_entries(&path, 40);
    let header = LogReader::open(&path).unwrap().header().clone();
    assert_eq!((header.version, header.disk_id, header.metadata_size_bytes), (0x0001_0000, None, 512));
    assert_eq!(verify(&path, Some(4 << 30)).unwrap().entry_count, 40);
}

#[test]
fn a_hyperv_log_without_entries_is_empty_not_damaged() {
    let path = golden("hyperv-v2-empty.hrl");
    assert_eq!(read_all(&path), vec![]);
    assert_eq!(LogReader::open(&path).unwrap().header().end_of_log, 8192);
    assert_eq!(verify(&path, None).unwrap().entry_count, 0);
}

#[test]
fn a_header_alone_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.hrl");
    let bytes = std::fs::read(golden("hyperv-v2-empty.hrl")).unwrap();
    std::fs::write(&path, &bytes[..4096]).unwrap();
    assert_eq!(LogReader::open(&path).map(|_| ()).unwrap_err().code(), "LOG_CORRUPT");
}

fn profile_requests() -> Vec<Request> {
    let mut random = SplitMix(2026);
    (0..130).map(|n| Request::random(&mut random, n)).collect()
}

fn write_profile_log(folder: &Path) -> PathBuf {
    let (log, index) = (folder.join("profile-1.hrl"), folder.join("profile-1.hrx"));
    let files = (FsLogFile::create_new(&log).unwrap(), FsLogFile::create_new(&index).unwrap());
    let mut writer = LogWriter::create(files.0, files.1, options(1000)).unwrap();
    let requests = profile_requests();
    let appends: Vec<_> = requests.iter().map(Request::append).collect();
    writer.append(&appends[..20]).unwrap();
    writer.append_and_checkpoint(&appends[20..25]).unwrap();
    writer.sync().unwrap();
    appends[25..].iter().for_each(|append| writer.append(&[*append]).unwrap());
    writer.seal(EPOCH_NS + 1_000_000_000_000).unwrap();
    log
}

#[test]
fn the_golden_log_of_our_profile_reads_back_and_is_written_the_same_today() {
    let folder = tempfile::tempdir().unwrap();
    let today = write_profile_log(folder.path());
    for name in ["profile-1.hrl", "profile-1.hrx"] {
        let golden = std::fs::read(golden(name)).unwrap();
        assert!(
            std::fs::read(folder.path().join(name)).unwrap() == golden,
            "{name} changed: that is a new version"
        );
    }
    let requests = profile_requests();
    let entries = read_all(&golden("profile-1.hrl"));
    assert_eq!(entries.len(), requests.len());
    for (n, ((entry, data), request)) in entries.iter().zip(&requests).enumerate() {
        assert!(request.is(entry) && *data == request.data, "entry {n}");
        assert_eq!((entry.time_ns, entry.sequence), (request.time_ns, 1000 + n as u64));
    }
    verify(&today, Some(DISK_BYTES as u64)).unwrap();
}

#[test]
fn the_slow_reader_walks_what_we_write() {
    let log = std::fs::read(golden("profile-1.hrl")).unwrap();
    let requests = profile_requests();
    let entries = slow_reader(&log);
    assert_eq!(entries.len(), requests.len());
    for ((offset, length, operation, data), request) in entries.into_iter().zip(requests) {
        assert_eq!(
            (offset, length, operation),
            (request.offset, request.length_bytes, request.operation.code())
        );
        assert!(data == request.data);
    }
    assert_eq!(&log[16..20], b"sste");
}

#[test]
fn a_strict_export_holds_nothing_of_our_profile() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("strict.hrl");
    export_strict(&golden("profile-1.hrl"), &output).unwrap();
    let log = std::fs::read(&output).unwrap();
    assert_eq!(&log[16..20], b"ct\0\0");
    let mut disk = vec![0xEE; DISK_BYTES];
    for (offset, length, operation, data) in slow_reader(&log) {
        assert_eq!((operation, data.len() as u64), (1, length));
        disk[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    }
    assert!(disk == disk_of(&profile_requests()));
    // 130 entries: an empty block, 127, and 3 whose block has zeros in all other slots.
    let last = log.len() - 4096;
    assert!(log[last + 4 * 32..].iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no index, no partial file");
}

#[test]
fn a_strict_export_never_lands_on_a_log_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let log = write_profile_log(folder.path());
    let before = std::fs::read(&log).unwrap();
    assert_eq!(export_strict(&log, &log).unwrap_err().code(), "LOG_INVALID_REQUEST");
    assert!(std::fs::read(&log).unwrap() == before);
}

#[test]
fn a_sealed_log_is_described_again_as_when_it_was_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let (log, index) = (folder.path().join("x.hrl"), folder.path().join("x.hrx"));
    let files = (FsLogFile::create_new(&log).unwrap(), FsLogFile::create_new(&index).unwrap());
    let mut writer = LogWriter::create(files.0, files.1, options(7)).unwrap();
    let requests = profile_requests();
    requests.iter().for_each(|request| writer.append_and_checkpoint(&[request.append()]).unwrap());
    let sealed = writer.seal(EPOCH_NS).unwrap();
    assert_eq!(sealed.index_size_bytes, index.metadata().unwrap().len());
    assert_eq!(LogReader::open(&log).unwrap().describe().unwrap(), sealed);
}

fn link(id: u8, previous_id: u8, disk: u8) -> ChainLink {
    ChainLink {
        path: PathBuf::from(format!("{id}.hrl")),
        id: LogId([id; 16]),
        previous_id: LogId([previous_id; 16]),
        disk_id: Some([disk; 16]),
    }
}

#[test]
fn a_chain_with_a_gap_a_fork_or_a_foreign_log_is_refused() {
    verify_chain(&[]).unwrap();
    verify_chain(&[link(1, 0, 9), link(2, 1, 9), link(3, 2, 9)]).unwrap();
    let code = |links: &[ChainLink]| verify_chain(links).unwrap_err().code();
    assert_eq!(code(&[link(1, 0, 9), link(3, 2, 9)]), "LOG_CHAIN_GAP");
    assert_eq!(code(&[link(2, 1, 9), link(1, 0, 9)]), "LOG_CHAIN_GAP", "order counts");
    assert_eq!(code(&[link(1, 0, 9), link(2, 1, 9), link(3, 1, 9)]), "LOG_CHAIN_FORK");
    assert_eq!(code(&[link(1, 0, 9), link(2, 1, 9), link(1, 2, 9)]), "LOG_CHAIN_FORK");
    assert_eq!(code(&[link(1, 0, 9), link(2, 1, 8)]), "LOG_CHAIN_FORK");
    let opened = ChainLink::open(&golden("hyperv-v2.hrl")).unwrap();
    assert_eq!((opened.id, opened.previous_id), (LogId([0xA1; 16]), LogId([0xA0; 16])));
}

/// A golden log with bytes changed, checksums of header, block headers and entries put right again.
fn hostile(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<u64, (&'static str, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.hrl");
    let mut log = std::fs::read(golden(name)).unwrap();
    change(&mut log);
    std::fs::write(&path, &log).unwrap();
    assert_eq!(inspect(&path).unwrap().damage.is_empty(), verify(&path, None).is_ok());
    verify(&path, Some(1 << 40)).map(|counts| counts.entry_count).map_err(|e| (e.code(), e.place().offset))
}

fn put(log: &mut [u8], at: usize, value: u64, size: usize) {
    log[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

fn right(log: &mut [u8], start: usize, size: usize, field: usize) {
    put(log, start + field, 0, 4);
    let sum: u32 = log[start..start + size].iter().map(|byte| u32::from(*byte)).sum();
    put(log, start + field, u64::from(!sum), 4);
}

#[test]
fn hostile_logs_with_right_checksums_are_refused_by_place() {
    const V1: &str = "hyperv-v1-data-first.hrl";
    const V2: &str = "hyperv-v2.hrl";
    let log = std::fs::read(golden(V1)).unwrap();
    let end = u64::from_le_bytes(log[44..52].try_into().unwrap());
    let last = end as usize - 512;
    let header = |field: usize, value: u64, size: usize| {
        hostile(V1, |log| {
            put(log, field, value, size);
            right(log, 0, 4096, 40);
        })
    };
    assert_eq!(hostile(V1, |_| {}), Ok(40));
    assert_eq!(header(8, 0x0003_0000, 4), Err(("LOG_VERSION_UNSUPPORTED", 8)));
    assert_eq!(header(44, 0, 8), Err(("LOG_NOT_SEALED", 44)));
    assert_eq!(header(44, 4096, 8), Err(("LOG_HEADER_CORRUPT", 44)), "end inside of the header");
    assert_eq!(header(44, u64::MAX, 8), Err(("LOG_CORRUPT", 44)), "end past the file");
    assert_eq!(header(44, end - 1, 8), Err(("LOG_CORRUPT", end - 513)), "no block there");
    assert_eq!(header(56, 0, 4), Err(("LOG_HEADER_CORRUPT", 56)));
    assert_eq!(header(56, 513, 4), Err(("LOG_HEADER_CORRUPT", 56)));
    assert_eq!(header(56, 0xFFFF_FE00, 4), Err(("LOG_HEADER_CORRUPT", 56)), "a block of 4 GiB");
    assert_eq!(header(96, 41, 8), Err(("LOG_CORRUPT", 96)));
    assert_eq!(header(96, u64::MAX, 8), Err(("LOG_CORRUPT", 96)));
    let block = |at: usize, value: u64, size: usize| {
        hostile(V1, |log| {
            put(log, last + at, value, size);
            right(log, last, 32, 12);
        })
    };
    assert_eq!(block(0, 511, 8), Err(("LOG_CORRUPT", last as u64)), "overlaps the block before");
    assert_eq!(block(0, last as u64, 8), Err(("LOG_CORRUPT", last as u64)), "points at the log header");
    assert_eq!(block(0, u64::MAX, 8), Err(("LOG_CORRUPT", last as u64)), "points forward, by wrapping");
    assert_eq!(block(8, 16, 4), Err(("LOG_CORRUPT", last as u64)), "more entries than slots");
    assert_eq!(block(8, u64::from(u32::MAX), 4), Err(("LOG_CORRUPT", last as u64)));
    let entry = |at: usize, value: u64, size: usize| {
        hostile(V1, |log| {
            put(log, last + 32 + at, value, size);
            right(log, last + 32, 32, 8);
        })
    };
    assert_eq!(entry(12, 0xFFFF_FFFF, 4), Err(("LOG_CORRUPT", last as u64)), "data longer than the gap");
    assert_eq!(entry(20, 9, 1), Err(("LOG_CORRUPT", last as u64 + 32)), "unknown operation");
    assert_eq!(entry(0, u64::MAX - 5, 8), Err(("LOG_CORRUPT", last as u64 + 32)), "range passes 2^64");
    assert_eq!(entry(0, 1 << 40, 8).unwrap_err().0, "LOG_ENTRY_OUT_OF_RANGE");
    assert_eq!(entry(21, 77, 4).unwrap_err().0, "LOG_CORRUPT", "DataChecksum is verified when it is not 0");
    assert_eq!(hostile(V2, |log| log.truncate(9000)), Err(("LOG_CORRUPT", 44)));
    assert_eq!(hostile(V2, |log| log.truncate(4000)), Err(("LOG_NOT_HRL", 0)));
    assert_eq!(hostile(V2, Vec::clear), Err(("LOG_NOT_HRL", 0)));
    assert_eq!(hostile(V2, |log| log[3] = b'!'), Err(("LOG_NOT_HRL", 0)));
    assert_eq!(hostile(V2, |log| log[2000] = 1), Err(("LOG_HEADER_CORRUPT", 40)));
}

#[test]
fn a_path_that_is_no_log_file_is_refused_with_a_code() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("missing.hrl")] {
        assert_eq!(verify(&path, None).unwrap_err().code(), "LOG_READ_FAILED");
        assert_eq!(inspect(&path).map(|_| ()).unwrap_err().code(), "LOG_READ_FAILED");
    }
}
