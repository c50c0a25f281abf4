//! What a write costs in this room, and how long a log takes to open after a crash. `cargo bench -p secondsite-hrl`.
//!
//! Method: one thread, release build, medians of seven rounds; data in cache for the sums; appends go to files in the
//! folder for temporary files, through the page cache, without a sync. Only ratios within one run count.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints and may stop")]

use std::hint::black_box;
use std::time::Instant;

use secondsite_hrl::{
    Append, FsLogFile, LogId, LogOptions, LogReader, LogWriter, Operation, RecoverMode, byte_sum, data_hash,
    recover,
};

fn median_ns(per_round: u64, mut round: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / per_round as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

fn sums() {
    for size in [32, 512, 4096, 65_536, 1 << 20] {
        let data: Vec<u8> = (0..size).map(|n| (n * 7) as u8).collect();
        let calls = (64 << 20) / size as u64;
        let sum = median_ns(calls, || (0..calls).for_each(|_| _ = black_box(byte_sum(black_box(&data)))));
        let hash = |n| data_hash(Operation::Write, n, size as u32, black_box(&data));
        let hash = median_ns(calls, || (0..calls).for_each(|n| _ = black_box(hash(n))));
        println!("{size:>8} B: byte sum {sum:>9.1} ns, data hash {hash:>9.1} ns");
    }
}

fn options() -> LogOptions {
    LogOptions {
        id: LogId([1; 16]),
        previous_id: LogId::NONE,
        disk_id: [2; 16],
        created_ns: 1,
        first_sequence: 0,
        key: [3; 32],
        keep_space: false,
    }
}

fn new_log(folder: &std::path::Path, name: &str) -> LogWriter<FsLogFile> {
    let log = FsLogFile::create_new(&folder.join(format!("{name}.hrl"))).unwrap();
    let index = FsLogFile::create_new(&folder.join(format!("{name}.hrx"))).unwrap();
    LogWriter::create(log, index, options()).unwrap()
}

fn appends() {
    let folder = tempfile::tempdir().unwrap();
    for (size, batch) in [(4096, 1), (4096, 16), (65_536, 1), (65_536, 16)] {
        let data = vec![7u8; size];
        let count = (64 << 20) / size;
        let mut round = 0;
        let plain = median_ns(count as u64, || {
            round += 1;
            let path = folder.path().join(format!("plain{size}-{batch}-{round}"));
            let file = FsLogFile::create_new(&path).unwrap();
            let slices: Vec<_> = (0..batch).map(|_| std::io::IoSlice::new(&data)).collect();
            for n in 0..count / batch {
                use secondsite_hrl::LogFile;
                file.write_all_at(&mut slices.clone(), (n * batch * size) as u64).unwrap();
            }
            std::fs::remove_file(path).unwrap();
        });
        let logged = median_ns(count as u64, || {
            round += 1;
            let mut writer = new_log(folder.path(), &format!("log{size}-{batch}-{round}"));
            let appends = vec![Append::write(4096, &data, 1); batch];
            (0..count / batch).for_each(|_| writer.append(&appends).unwrap());
            for extension in ["hrl", "hrx"] {
                std::fs::remove_file(folder.path().join(format!("log{size}-{batch}-{round}.{extension}")))
                    .unwrap();
            }
        });
        println!(
            "{size:>8} B in batches of {batch:>2}: append {logged:>8.0} ns, plain pwritev {plain:>8.0} ns an entry"
        );
    }
}

fn opening() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = new_log(folder.path(), "big");
    let data = [7u8; 512];
    let entries = 1u64 << 20;
    for n in 0..entries / 64 {
        let batch: Vec<_> = (0..64).map(|i| Append::write((n * 64 + i) * 512, &data, n)).collect();
        writer.append(&batch).unwrap();
    }
    drop(writer);
    let (log, index) = (folder.path().join("big.hrl"), folder.path().join("big.hrx"));
    for mode in [RecoverMode::ProcessDeath, RecoverMode::PowerLoss] {
        let start = Instant::now();
        let recovered =
            recover(FsLogFile::open(&log).unwrap(), FsLogFile::open(&index).unwrap(), mode).unwrap();
        assert_eq!(recovered.writer.entry_count(), entries);
        println!("recover {entries} entries, {mode:?}: {:.3} s", start.elapsed().as_secs_f64());
        if mode == RecoverMode::PowerLoss {
            recovered.writer.seal(1).unwrap();
        }
    }
    let start = Instant::now();
    let reader = LogReader::open(&log).unwrap();
    let (mut sum, mut buffer) = (0u64, vec![0; 512]);
    reader
        .entries()
        .unwrap()
        .for_each(|entry| {
            sum += entry.offset;
            reader.read_data(entry, &mut buffer)
        })
        .unwrap();
    println!("read and check them: {:.3} s ({sum})", start.elapsed().as_secs_f64());
}

fn main() {
    sums();
    appends();
    opening();
}
