//! What must hold for any sequence of requests and for any bytes:
//! 1. writes, zeroes, discards, checkpoints, process deaths in any order, then a seal: replay equals the byte array;
//! 2. a flip of any single byte of a sealed log or its index is detected by `verify`;
//! 3. arbitrary bytes, and valid logs with mutations, never panic a reader;
//! 4. coalesced and exported logs make the same disk.

#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]
#![allow(clippy::print_stdout, reason = "a failing run shows its seed")]

mod common;

use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use secondsite_hrl::faults::{MemoryLogFile, SplitMix};
use secondsite_hrl::{
    LogReader, LogWriter, Operation, ReadOptions, RecoverMode, coalesce_plan, export_strict, inspect_files,
    recover, verify, verify_files,
};

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Request>),
    AppendAndCheckpoint(Vec<Request>),
    Checkpoint,
    Die,
    DieInAppend(Request, usize),
}

fn request() -> impl Strategy<Value = Request> {
    (0..8u8, 0..500u64, 1..10u64, any::<u64>(), 0..3_000_000_000u64).prop_map(
        |(kind, start, length, fill, time)| {
            let operation = [Operation::WriteZeroes, Operation::Discard].get(usize::from(kind)).copied();
            let operation = operation.unwrap_or(Operation::Write);
            Request::sectors(operation, start, length, fill, EPOCH_NS + time)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let batch = || prop::collection::vec(request(), 0..40);
    prop_oneof![
        6 => batch().prop_map(Step::Append),
        2 => batch().prop_map(Step::AppendAndCheckpoint),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Die),
        1 => (request(), 0..5000usize).prop_map(|(request, torn)| Step::DieInAppend(request, torn)),
    ]
}

fn appends(batch: &[Request]) -> Vec<secondsite_hrl::Append<'_>> {
    batch.iter().map(Request::append).collect()
}

fn die_and_recover(writer: LogWriter<File>, files: &(File, File)) -> LogWriter<File> {
    drop(writer);
    recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap().writer
}

fn play(steps: &[Step], files: &(File, File)) -> (LogWriter<File>, Vec<Request>) {
    let (mut writer, mut written) = (new_log(files), Vec::new());
    for step in steps {
        match step {
            Step::Append(batch) => {
                writer.append(&appends(batch)).unwrap();
                written.extend(batch.iter().cloned());
            }
            Step::AppendAndCheckpoint(batch) => {
                writer.append_and_checkpoint(&appends(batch)).unwrap();
                written.extend(batch.iter().cloned());
            }
            Step::Checkpoint => writer.checkpoint().unwrap(),
            Step::Die => writer = die_and_recover(writer, files),
            Step::DieInAppend(request, torn) => {
                // A kill in the middle of the write to the log: a prefix of the batch, and no record.
                drop(writer);
                let prefix = &request.data[..(*torn).min(request.data.len())];
                files.0.damage(|log| log.extend_from_slice(prefix));
                writer = recover(files.0.clone(), files.1.clone(), RecoverMode::ProcessDeath).unwrap().writer;
            }
        }
    }
    (writer, written)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_of_any_sealed_log_equals_the_array_of_bytes(steps in prop::collection::vec(step(), 0..30)) {
        let files = files();
        let (writer, written) = play(&steps, &files);
        let sealed = writer.seal(EPOCH_NS).unwrap();
        prop_assert_eq!(sealed.entry_count, written.len() as u64);
        prop_assert_eq!(sealed.next_sequence, 100 + written.len() as u64);
        prop_assert_eq!(sealed.log_size_bytes, files.0.content().len() as u64);
        let data_bytes: usize = written.iter().map(|request| request.data.len()).sum();
        prop_assert_eq!(sealed.data_bytes, data_bytes as u64);
        let disk = disk_of(&written);
        prop_assert!(replay(&files, true).unwrap() == disk);
        prop_assert!(replay(&files, false).unwrap() == disk);
        let counts = verify_files(&files.0, Some(&files.1), Some(DISK_BYTES as u64)).unwrap();
        prop_assert_eq!(counts.write_bytes, data_bytes as u64);
        prop_assert!(inspect_files(&files.0, Some(&files.1)).unwrap().damage.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_reader(log in prop::collection::vec(any::<u8>(), 0..20_000), index in prop::collection::vec(any::<u8>(), 0..9000)) {
        read_all_ways(log, index);
    }

    #[test]
    fn mutated_logs_never_panic_a_reader(
        seed in any::<u64>(), cut in prop::option::of(0..60_000usize), checksums in any::<bool>(),
        changes in prop::collection::vec((0..60_000usize, any::<u8>()), 0..12),
    ) {
        let files = sealed_log(seed, 40);
        let (mut log, mut index) = (files.0.content(), files.1.content());
        for (at, byte) in changes {
            let target = if at.is_multiple_of(5) { &mut index } else { &mut log };
            let at = if at.is_multiple_of(3) { at % 4096 } else { at % target.len() };
            target[at] = byte;
        }
        if checksums {
            right_header(&mut log);
        }
        if let Some(cut) = cut {
            log.truncate(cut);
        }
        read_all_ways(log, index);
    }
}

/// The golden logs are the seed corpus: each one, with a few bytes changed or the end cut off, 150 times.
#[test]
fn mutated_golden_logs_never_panic_a_reader() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/vectors/hrl");
    let index = std::fs::read(folder.join("profile-1.hrx")).unwrap();
    for name in ["hyperv-v2.hrl", "hyperv-v1-data-first.hrl", "hyperv-v2-empty.hrl", "profile-1.hrl"] {
        let golden = std::fs::read(folder.join(name)).unwrap();
        for seed in 0..150 {
            println!("{name}, seed {seed}");
            let mut random = SplitMix(seed);
            let (mut log, mut index) = (golden.clone(), index.clone());
            for _ in 0..1 + random.next() % 4 {
                let at = random.next() as usize;
                let target = if random.next().is_multiple_of(4) { &mut index } else { &mut log };
                // Half of the changes go where the structure is: the header, and the block before the end.
                let at = match random.next() % 4 {
                    0 => at % 128,
                    1 => target.len() - 1 - at % 4096.min(target.len()),
                    _ => at % target.len(),
                };
                target[at] = random.next() as u8;
            }
            right_header(&mut log);
            log.truncate(log.len() - random.next() as usize % 3 * 512);
            read_all_ways(log, index);
        }
    }
}

/// A hostile header has a right checksum.
fn right_header(log: &mut [u8]) {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let checksum = !(sum(&log[..40]) + sum(&log[44..4096]));
    log[40..44].copy_from_slice(&checksum.to_le_bytes());
}

fn read_all_ways(log: Vec<u8>, index: Vec<u8>) {
    let files = (
        Arc::new(MemoryLogFile::with_content("x.hrl", log)),
        Arc::new(MemoryLogFile::with_content("x.hrx", index)),
    );
    for index in [None, Some(&files.1)] {
        let _ = verify_files(&files.0, index, Some(DISK_BYTES as u64));
        let report = inspect_files(&files.0, index).unwrap();
        assert!(report.header.is_some() || !report.damage.is_empty());
        if let Ok(reader) = LogReader::from_files(files.0.clone(), index.cloned(), ReadOptions::default()) {
            let mut buffer = Vec::new();
            let _ = reader.entries().unwrap().for_each(|entry| reader.verify_data(entry, &mut buffer));
        }
    }
    let _ = recover(files.0.clone(), files.1.clone(), RecoverMode::PowerLoss);
    let _ = recover(files.0, files.1, RecoverMode::ProcessDeath);
}

fn sealed_log(seed: u64, requests: u64) -> (File, File) {
    let files = files();
    let mut random = SplitMix(seed);
    let mut writer = new_log(&files);
    for number in 0..requests {
        writer.append(&[Request::random(&mut random, number).append()]).unwrap();
        if number.is_multiple_of(7) {
            writer.checkpoint().unwrap();
        }
    }
    writer.seal(EPOCH_NS).unwrap();
    files
}

#[test]
fn every_flipped_byte_of_a_sealed_log_and_its_index_is_detected() {
    let files = files();
    let mut writer = new_log(&files);
    for (n, operation) in [Operation::Write, Operation::Discard, Operation::Write].into_iter().enumerate() {
        writer.append(&[Request::sectors(operation, n as u64 * 8, 2, 5, EPOCH_NS).append()]).unwrap();
    }
    writer.checkpoint().unwrap();
    writer.append(&[Request::sectors(Operation::WriteZeroes, 90, 2, 5, EPOCH_NS).append()]).unwrap();
    writer.seal(EPOCH_NS).unwrap();
    verify_files(&files.0, Some(&files.1), None).unwrap();
    for file in [&files.0, &files.1] {
        for at in 0..file.content().len() {
            let flip = 1u8 << (at % 8);
            file.damage(|bytes| bytes[at] ^= flip);
            let error = verify_files(&files.0, Some(&files.1), None).map(|_| ());
            assert!(error.is_err(), "byte {at} of {:?}", secondsite_hrl::LogFile::path(file));
            let report = inspect_files(&files.0, Some(&files.1)).unwrap();
            assert!(!report.damage.is_empty(), "byte {at}");
            file.damage(|bytes| bytes[at] ^= flip);
        }
    }
    verify_files(&files.0, Some(&files.1), None).unwrap();
}

#[test]
fn swapped_bytes_that_the_byte_sum_cannot_see_are_detected_by_the_hash() {
    let files = files();
    let mut writer = new_log(&files);
    let request = Request::sectors(Operation::Write, 0, 8, 5, EPOCH_NS);
    writer.append(&[request.append()]).unwrap();
    writer.seal(EPOCH_NS).unwrap();
    files.0.damage(|log| log.swap(8192 + 7, 8192 + 1000));
    let error = verify_files(&files.0, Some(&files.1), None).unwrap_err();
    assert_eq!((error.code(), error.place().offset), ("LOG_CORRUPT", 8192));
    // Without the index nothing can see it: the reason for having one.
    verify_files(&files.0, None, None).unwrap();
}

#[test]
fn coalesced_and_exported_logs_make_the_same_disk() {
    for seed in 0..12 {
        println!("seed {seed}");
        let folder = tempfile::tempdir().unwrap();
        let mut random = SplitMix(seed);
        let (mut paths, mut written) = (Vec::new(), Vec::new());
        for log in 0..3 {
            let path = folder.path().join(format!("{log}.hrl"));
            let requests: Vec<_> = (0..150).map(|n| Request::random(&mut random, n)).collect();
            write_log(&path, &requests);
            written.extend(requests);
            paths.push(path);
        }
        let inputs: Vec<_> = paths.iter().map(|path| path.as_path()).collect();
        let plan = coalesce_plan(&inputs).unwrap();
        let promised = plan.output_bytes_max();
        let input_bytes: u64 = paths.iter().map(|p| sizes(p)).sum();
        assert_eq!(plan.input_bytes(), input_bytes);
        assert!(plan.saved_percent() > 50, "450 writes on 512 sectors overlap many times");
        let output = folder.path().join("all.hrl");
        let coalesced = plan.write(&output, options(5), EPOCH_NS).unwrap();
        assert_eq!(coalesced.output_bytes, sizes(&output));
        assert!(coalesced.output_bytes <= promised);
        verify(&output, Some(DISK_BYTES as u64)).unwrap();
        assert_no_overlap(&output);
        let disk = disk_of(&written);
        assert!(disk_of_files(&[&output]) == disk);
        let strict = folder.path().join("strict.hrl");
        export_strict(&output, &strict).unwrap();
        assert!(disk_of_files(&[&strict]) == disk);
        assert!(!secondsite_hrl::LogReader::open(&strict).unwrap().has_index());
        assert!(disk_of_files(&inputs) == disk);
    }
}

fn assert_no_overlap(path: &std::path::Path) {
    let mut end = 0;
    let reader = LogReader::open(path).unwrap();
    reader
        .entries()
        .unwrap()
        .for_each(|entry| {
            assert!(entry.offset >= end, "{entry:?} overlaps what ends at {end}");
            end = entry.end();
            Ok(())
        })
        .unwrap();
}

fn sizes(log: &std::path::Path) -> u64 {
    log.metadata().unwrap().len() + log.with_extension("hrx").metadata().unwrap().len()
}

fn write_log(path: &std::path::Path, requests: &[Request]) {
    use secondsite_hrl::FsLogFile;
    let index = path.with_extension("hrx");
    let files = (FsLogFile::create_new(path).unwrap(), FsLogFile::create_new(&index).unwrap());
    let mut writer = LogWriter::create(files.0, files.1, options(1)).unwrap();
    writer.append(&appends(requests)).unwrap();
    writer.seal(EPOCH_NS).unwrap();
}

fn disk_of_files(paths: &[&std::path::Path]) -> Vec<u8> {
    let mut disk = vec![0xEE; DISK_BYTES];
    for path in paths {
        let reader = LogReader::open(path).unwrap();
        let apply = |entry: &secondsite_hrl::Entry| {
            let range = entry.offset as usize..entry.end() as usize;
            match entry.operation {
                Operation::Write => reader.read_data(entry, &mut disk[range]),
                _ => {
                    disk[range].fill(0);
                    Ok(())
                }
            }
        };
        reader.entries().unwrap().for_each(apply).unwrap();
    }
    disk
}
