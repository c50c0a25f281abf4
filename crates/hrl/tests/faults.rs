//! Bad days of a writer: a full disk, I/O errors, failed syncs, a kill between two writes, damage in an open log.
#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]

mod common;

use common::*;
use secondsite_hrl::faults::SplitMix;
use secondsite_hrl::{
    Append, DamageKind, LogFile, LogWriter, Operation, RANGE_BYTES_MAX, RecoverMode, WRITE_BYTES_MAX,
    inspect_files, recover, verify_files,
};

fn requests(count: u64) -> Vec<Request> {
    let mut random = SplitMix(99);
    (0..count).map(|n| Request::random(&mut random, n)).collect()
}

fn written(files: &(File, File), count: u64) -> (LogWriter<File>, Vec<Request>) {
    let (mut writer, requests) = (new_log(files), requests(count));
    requests.iter().for_each(|request| writer.append(&[request.append()]).unwrap());
    (writer, requests)
}

fn recover_code(files: &(File, File), mode: RecoverMode) -> Result<u64, (&'static str, u64)> {
    let recovered = recover(files.0.clone(), files.1.clone(), mode);
    recovered.map(|r| r.writer.entry_count()).map_err(|e| (e.code(), e.place().offset))
}

#[test]
fn a_full_disk_keeps_the_good_prefix_which_can_be_sealed_when_space_is_back() {
    for torn_file in [0, 1] {
        let files = files();
        let (mut writer, requests) = written(&files, 140);
        let file = [&files.0, &files.1][torn_file];
        file.limit_space(Some(file.content().len() as u64 + 48));
        let more = Request::sectors(Operation::Write, 0, 8, 1, EPOCH_NS);
        let error = writer.append(&[more.append()]).unwrap_err();
        assert!(error.is_disk_full());
        assert_eq!(error.code(), "LOG_WRITE_FAILED");
        assert_eq!(error.hint(), "free space where the logs lie");
        let refused = writer.append(&[more.append()]).unwrap_err();
        assert_eq!(refused.code(), "LOG_WRITER_FAILED");
        assert!(writer.is_failed());
        assert_eq!(writer.entry_count(), 140);
        // What the failed write left behind is gone: recovery must not find a refused entry.
        assert_eq!(files.1.content().len(), 4096 + 140 * 64);
        file.limit_space(None);
        let sealed = writer.seal(EPOCH_NS).unwrap();
        assert_eq!(sealed.entry_count, 140);
        verify_files(&files.0, Some(&files.1), None).unwrap();
        assert!(replay(&files, true).unwrap() == disk_of(&requests));
    }
}

#[test]
fn a_log_that_cannot_even_be_sealed_is_recovered_later() {
    let files = files();
    let (mut writer, requests) = written(&files, 130);
    files.0.limit_space(Some(files.0.content().len() as u64));
    writer.append(&[Request::sectors(Operation::Write, 0, 1, 1, EPOCH_NS).append()]).unwrap_err();
    assert!(writer.seal(EPOCH_NS).unwrap_err().is_disk_full());
    files.0.limit_space(None);
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap();
    assert_eq!(recovered.writer.seal(EPOCH_NS).unwrap().entry_count, 130);
    assert!(replay(&files, true).unwrap() == disk_of(&requests));
}

#[test]
fn a_failed_sync_is_never_retried() {
    let files = files();
    let (writer, _) = written(&files, 3);
    files.0.fail_syncs(true);
    assert_eq!(writer.sync().unwrap_err().code(), "LOG_WRITE_FAILED");
    files.0.fail_syncs(false);
    let syncs = files.0.counts().syncs;
    assert_eq!(writer.sync().unwrap_err().code(), "LOG_WRITER_FAILED");
    assert_eq!(writer.seal(EPOCH_NS).unwrap_err().code(), "LOG_WRITER_FAILED");
    assert_eq!(files.0.counts().syncs, syncs);
}

#[test]
fn a_batch_is_one_write_to_the_log_and_one_to_the_index() {
    let files = files();
    let mut writer = new_log(&files);
    let requests = requests(300); // two metadata blocks among them
    let before = (files.0.counts().writes, files.1.counts().writes);
    let appends: Vec<_> = requests.iter().map(Request::append).collect();
    writer.append(&appends).unwrap();
    assert_eq!((files.0.counts().writes, files.1.counts().writes), (before.0 + 1, before.1 + 1));
}

#[test]
fn a_log_that_is_flushed_is_written_ahead_of_itself_so_that_flushes_do_not_make_it_grow() {
    let files = files();
    let mut writer = new_log(&files);
    let request = Request::sectors(Operation::Write, 0, 8, 1, EPOCH_NS);
    let mut sizes = std::collections::BTreeSet::new();
    for _ in 0..100 {
        writer.append_and_checkpoint(&[request.append()]).unwrap();
        sizes.insert(files.0.size_bytes().unwrap());
    }
    assert!(sizes.len() <= 2, "the file had {} sizes in 100 flushes", sizes.len());
    let position = writer.log_size_bytes();
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::PowerLoss).unwrap();
    assert_eq!(recovered.writer.log_size_bytes(), position, "what is written ahead is no part of the log");
    recovered.writer.seal(EPOCH_NS).unwrap();
    assert_eq!(files.0.size_bytes().unwrap(), position);
}

#[test]
fn a_recycled_log_is_not_written_ahead_where_it_has_room() {
    let files = files();
    let (writer, _) = written(&files, 200);
    drop(writer);
    let room = files.0.size_bytes().unwrap();
    let recycled = secondsite_hrl::LogOptions { keep_space: true, ..options(100) };
    let mut writer = LogWriter::create(files.0.clone(), files.1.clone(), recycled).unwrap();
    let request = Request::sectors(Operation::Write, 0, 8, 1, EPOCH_NS);
    let mut writes = files.0.counts().writes;
    while writer.log_size_bytes() + (128 << 10) < room {
        writer.append_and_checkpoint(&[request.append()]).unwrap();
        assert_eq!(files.0.counts().writes, writes + 1, "at {}", writer.log_size_bytes());
        assert_eq!(files.0.size_bytes().unwrap(), room);
        writes += 1;
    }
    assert!(writer.entry_count() > 10, "{} bytes are too few to show it", room);
}

#[test]
fn a_kill_between_log_and_index_cuts_only_what_was_never_acknowledged() {
    let files = files();
    let (writer, _) = written(&files, 200);
    let size = writer.log_size_bytes();
    drop(writer);
    files.0.damage(|log| log.extend_from_slice(&[7; 3000]));
    files.1.damage(|index| index.extend_from_slice(&[7; 40])); // a record, torn
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap();
    assert_eq!(recovered.writer.entry_count(), 200);
    let torn = recovered.torn.unwrap();
    assert_eq!((torn.offset, torn.cut_bytes), (size, 3000));
    assert_eq!(files.0.content().len() as u64, size);
    assert_eq!(files.1.content().len(), 4096 + 200 * 64);
}

#[test]
fn a_kill_between_log_and_index_of_a_large_batch_keeps_what_whole_blocks_prove() {
    let files = files();
    let mut writer = new_log(&files);
    let requests = requests(300);
    writer.append(&[requests[0].append()]).unwrap();
    let index = files.1.content();
    let appends: Vec<_> = requests[1..].iter().map(Request::append).collect();
    writer.append(&appends).unwrap();
    drop(writer);
    files.1.damage(|bytes| *bytes = index); // killed before the index was written
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap();
    // Two blocks of 126 are in the log; the other 48 entries of the batch are unknown without records.
    assert_eq!((recovered.writer.entry_count(), recovered.entries_proven_by_blocks), (252, 251));
    assert!(recovered.torn.is_some());
    recovered.writer.seal(EPOCH_NS).unwrap();
    verify_files(&files.0, Some(&files.1), None).unwrap();
    assert!(replay(&files, true).unwrap() == disk_of(&requests[..252]));
}

#[test]
fn recovery_after_a_process_death_reads_the_index_and_little_else() {
    let files = files();
    let (writer, _) = written(&files, 3000);
    let log_bytes = writer.log_size_bytes();
    drop(writer);
    let before = files.0.counts().read_bytes;
    recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap();
    let read = files.0.counts().read_bytes - before;
    // Header, the 24 blocks (3000 / 126, and the first), and at most 64 entries of at most 9 sectors.
    assert!(read <= 4096 * 26 + 64 * 9 * 512, "{read} of {log_bytes} bytes");
}

#[test]
fn damage_in_an_open_log_after_a_process_death_is_named() {
    let damaged = |change: fn(&mut Vec<u8>, &mut Vec<u8>)| {
        let files = files();
        drop(written(&files, 300));
        files.0.damage(|log| files.1.damage(|index| change(log, index)));
        recover_code(&files, RecoverMode::ProcessDeath)
    };
    assert_eq!(damaged(|_, _| {}), Ok(300));
    let record = |n: u64| 4096 + n * 64;
    assert_eq!(damaged(|_, index| index[4096 + 290 * 64] ^= 1), Err(("LOG_CORRUPT", record(290))));
    assert_eq!(
        damaged(|log, _| log.truncate(log.len() - 4608)).unwrap_err().0,
        "LOG_CORRUPT",
        "log cut short"
    );
    assert_eq!(damaged(|log, _| log[4100] ^= 1), Err(("LOG_CORRUPT", 4096)), "first block");
    assert_eq!(damaged(|log, _| log[60] ^= 1), Err(("LOG_HEADER_CORRUPT", 40)));
    assert_eq!(damaged(|_, index| index[70] ^= 1), Err(("LOG_INDEX_MISMATCH", 4088)));
    assert_eq!(damaged(|_, index| index.clear()), Err(("LOG_INDEX_MISMATCH", 0)));
    assert_eq!(damaged(|log, _| log.clear()), Err(("LOG_NOT_HRL", 0)));
    let last = damaged(|log, _| {
        let at = log.len() - 100;
        log[at] ^= 1;
    });
    assert_eq!(last.unwrap_err().0, "LOG_CORRUPT", "data of the last entry");
    // A record in the middle whose entries a block proves is put right again.
    assert_eq!(damaged(|_, index| index[4096 + 100 * 64] ^= 1), Ok(300));
}

#[test]
fn a_sealed_log_is_not_recovered_and_an_open_one_is_not_read() {
    let files = files();
    let (writer, _) = written(&files, 5);
    assert_eq!(verify_files(&files.0, Some(&files.1), None).unwrap_err().code(), "LOG_NOT_SEALED");
    let report = inspect_files(&files.0, Some(&files.1)).unwrap();
    assert_eq!(report.statistics.entry_count, 5);
    assert_eq!(
        report.damage.iter().map(|d| (d.kind, d.code)).collect::<Vec<_>>(),
        [(DamageKind::Torn, "LOG_NOT_SEALED")]
    );
    writer.seal(EPOCH_NS).unwrap();
    assert_eq!(recover_code(&files, RecoverMode::ProcessDeath), Err(("LOG_ALREADY_SEALED", 44)));
    assert_eq!(recover_code(&files, RecoverMode::PowerLoss), Err(("LOG_ALREADY_SEALED", 44)));
}

#[test]
fn an_index_of_another_log_is_refused() {
    let (one, two) = (files(), files());
    drop(written(&one, 5));
    let other = secondsite_hrl::LogOptions { id: secondsite_hrl::LogId([9; 16]), ..options(100) };
    drop(LogWriter::create(two.0.clone(), two.1.clone(), other).unwrap());
    assert_eq!(recover_code(&(one.0, two.1), RecoverMode::ProcessDeath), Err(("LOG_INDEX_MISMATCH", 60)));
}

#[test]
fn sequence_numbers_at_the_end_of_64_bits_do_not_panic_a_reader() {
    let files = files();
    let mut writer = LogWriter::create(files.0.clone(), files.1.clone(), options(u64::MAX)).unwrap();
    let requests = requests(3);
    requests.iter().for_each(|request| writer.append(&[request.append()]).unwrap());
    drop(writer);
    for mode in [RecoverMode::PowerLoss, RecoverMode::ProcessDeath] {
        assert_eq!(recover_code(&files, mode), Ok(3));
    }
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap();
    assert_eq!(recovered.writer.seal(EPOCH_NS).unwrap().next_sequence, 2);
    verify_files(&files.0, Some(&files.1), None).unwrap();
}

#[test]
fn old_content_of_a_recycled_log_never_validates() {
    let files = files();
    let (writer, _) = written(&files, 300);
    writer.seal(EPOCH_NS).unwrap();
    let recycled = |key: u8| secondsite_hrl::LogOptions { key: [key; 32], keep_space: true, ..options(100) };
    let old_size = files.0.content().len();
    let mut writer = LogWriter::create(files.0.clone(), files.1.clone(), recycled(0x55)).unwrap();
    writer.append(&[requests(1)[0].append()]).unwrap();
    drop(writer);
    assert_eq!(files.0.content().len(), old_size, "space is kept");
    for mode in [RecoverMode::ProcessDeath, RecoverMode::PowerLoss] {
        assert_eq!(recover_code(&files, mode), Ok(1));
    }
}

#[test]
fn requests_that_no_entry_can_hold_are_refused_and_do_no_harm() {
    let files = files();
    let mut writer = new_log(&files);
    let data = [1u8; 1024];
    let code = |writer: &mut LogWriter<File>, append| writer.append(&[append]).unwrap_err().code();
    assert_eq!(code(&mut writer, Append::write(100, &data, 0)), "LOG_UNALIGNED");
    assert_eq!(code(&mut writer, Append::write(0, &data[..1000], 0)), "LOG_UNALIGNED");
    assert_eq!(code(&mut writer, Append::write(0, &[], 0)), "LOG_INVALID_REQUEST");
    assert_eq!(
        code(&mut writer, Append { length_bytes: 512, ..Append::write(0, &data, 0) }),
        "LOG_INVALID_REQUEST"
    );
    assert_eq!(
        code(&mut writer, Append { data: &data, ..Append::discard(0, 1024, 0) }),
        "LOG_INVALID_REQUEST"
    );
    assert_eq!(code(&mut writer, Append::discard(u64::MAX - 511, 1024, 0)), "LOG_INVALID_REQUEST");
    assert_eq!((writer.entry_count(), writer.is_failed()), (0, false));
    writer.append(&[Append::write(0, &data, 0)]).unwrap();
}

#[test]
fn what_is_too_long_for_one_entry_is_split() {
    let files = files();
    let mut writer = new_log(&files);
    let data = vec![3u8; WRITE_BYTES_MAX as usize + 512];
    writer
        .append(&[Append::write(4096, &data, 1), Append::discard(0, 3 * RANGE_BYTES_MAX + 1024, 2)])
        .unwrap();
    let entries = open_entries(&writer);
    let ranges: Vec<_> = entries.iter().map(|e| (e.offset, u64::from(e.length_bytes))).collect();
    assert_eq!(ranges[..2], [(4096, WRITE_BYTES_MAX), (4096 + WRITE_BYTES_MAX, 512)]);
    assert_eq!(ranges[2..5], [0, 1, 2].map(|n| (n * RANGE_BYTES_MAX, RANGE_BYTES_MAX)));
    assert_eq!(ranges[5..], [(3 * RANGE_BYTES_MAX, 1024)]);
    writer.seal(EPOCH_NS).unwrap();
    assert_eq!(verify_files(&files.0, Some(&files.1), None).unwrap().write_bytes, WRITE_BYTES_MAX + 512);
}

#[test]
fn a_log_that_changes_under_its_reader_is_called_so() {
    let files = files();
    let (writer, _) = written(&files, 40);
    writer.seal(EPOCH_NS).unwrap();
    let open =
        || secondsite_hrl::LogReader::from_files(files.0.clone(), Some(files.1.clone()), Default::default());
    let reader = open().unwrap();
    let mut batch = Vec::new();
    reader.entries().unwrap().next_batch(&mut batch).unwrap();
    let last = batch.iter().rev().find(|entry| entry.data_bytes() > 0).unwrap();
    let whole = files.0.content();
    files.0.damage(|log| log.truncate(9000));
    let mut buffer = vec![0; last.data_bytes() as usize];
    assert_eq!(reader.read_data(last, &mut buffer).unwrap_err().code(), "LOG_CHANGED_WHILE_READ");
    files.0.damage(|log| *log = whole);
    reader.read_data(last, &mut buffer).unwrap();
    files.0.damage(|log| log[last.log_offset as usize] ^= 1);
    assert_eq!(reader.read_data(last, &mut buffer).unwrap_err().code(), "LOG_CORRUPT");
}
