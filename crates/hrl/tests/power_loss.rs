//! What must hold after a power loss, over seeded runs with any loss, tearing and reordering of unsynced sectors:
//! 1. what was synced behind a checkpoint is there, entry for entry;
//! 2. what is there is a prefix of what was written, and its data is right;
//! 3. loss of what was never synced is a torn tail, never "damaged";
//! 4. the log goes on, survives the next loss the same way, and seals;
//! 5. data that imitates metadata blocks changes none of that.

#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]
#![allow(clippy::print_stdout, reason = "a failing run shows its seed")]

mod common;

use common::*;
use secondsite_hrl::faults::SplitMix;
use secondsite_hrl::{LogWriter, Operation, RecoverMode, recover, verify_files};

struct Run {
    files: (File, File),
    written: Vec<Request>,
    durable: usize,
    random: SplitMix,
    number: u64,
}

impl Run {
    fn write_some(&mut self, writer: &mut LogWriter<File>, imitate: bool) {
        for _ in 0..self.random.next() % 400 {
            let count = 1 + self.random.next() % 4;
            let mut batch: Vec<Request> =
                (0..count).map(|n| Request::random(&mut self.random, self.number + n)).collect();
            self.number += count;
            if imitate && self.random.next().is_multiple_of(8) {
                batch.push(self.imitation(writer));
            }
            let appends: Vec<_> = batch.iter().map(Request::append).collect();
            let flush = self.random.next().is_multiple_of(16);
            if flush {
                writer.append_and_checkpoint(&appends).unwrap();
                writer.sync().unwrap();
            } else {
                writer.append(&appends).unwrap();
            }
            self.written.extend(batch);
            if flush {
                self.durable = self.written.len();
            }
        }
    }

    /// A write whose data is, byte for byte, a piece of the log itself that holds a real block: right header, right
    /// distance for some place, right checksums. All that it lacks is the seal for where it stands.
    fn imitation(&mut self, writer: &LogWriter<File>) -> Request {
        let log = self.files.0.content();
        let sectors = log.len() / 512 - 8;
        let at = (self.random.next() as usize % sectors) * 512;
        let start = self.random.next() % (DISK_BYTES as u64 / 512 - 8);
        let mut request = Request::sectors(Operation::Write, start, 8, 0, EPOCH_NS);
        request.data.copy_from_slice(&log[at..at + 4096]);
        if self.random.next().is_multiple_of(2) {
            let block = forged_block(writer, &request);
            request.data.copy_from_slice(&block);
        }
        request
    }

    fn check(&mut self, writer: &LogWriter<File>) {
        let entries = open_entries(writer);
        assert!(entries.len() >= self.durable, "{} entries, {} were durable", entries.len(), self.durable);
        assert!(entries.len() <= self.written.len());
        for (n, (entry, request)) in entries.iter().zip(&self.written).enumerate() {
            assert!(request.is(entry), "entry {n} is {entry:?}");
            assert_eq!(entry.sequence, 100 + n as u64);
            let mut data = vec![0; entry.data_bytes() as usize];
            writer.read_data(entry, &mut data).unwrap();
            assert!(data == request.data, "data of entry {n}");
        }
        self.written.truncate(entries.len());
        self.durable = entries.len();
    }
}

/// A block with valid plain checksums that claims what a real next block would: one entry, the distance that fits if
/// it came to stand right behind the data written so far, plus a guessed seal.
fn forged_block(writer: &LogWriter<File>, request: &Request) -> [u8; 4096] {
    let mut block = [0x5A; 4096];
    let log = writer.log_file().content();
    let last_block = (8..log.len() / 512 - 7)
        .rev()
        .map(|sector| sector * 512)
        .find(|at| {
            log[*at + 16..*at + 32] == [0; 16] && log[*at + 12..*at + 16] == sum(&log[*at..*at + 32], 12)
        })
        .unwrap_or(4096);
    let distance = writer.log_size_bytes() - last_block as u64;
    block[..8].copy_from_slice(&distance.to_le_bytes());
    block[8..12].copy_from_slice(&1u32.to_le_bytes());
    block[16..32].fill(0);
    let checksum = sum(&block[..32], 12);
    block[12..16].copy_from_slice(&checksum);
    block[32..64].fill(0);
    block[32..40].copy_from_slice(&request.offset.to_le_bytes());
    block[44..48].copy_from_slice(&4096u32.to_le_bytes());
    block[52] = 1;
    let checksum = sum(&block[32..64], 8);
    block[40..44].copy_from_slice(&checksum);
    block[4080..4088].copy_from_slice(&u64::MAX.to_le_bytes());
    block
}

fn sum(slot: &[u8], field: usize) -> [u8; 4] {
    let bytes = slot.iter().enumerate().filter(|(n, _)| !(field..field + 4).contains(n));
    (!bytes.map(|(_, byte)| u32::from(*byte)).sum::<u32>()).to_le_bytes()
}

fn run(seed: u64, imitate: bool) {
    println!("seed {seed}, imitate {imitate}");
    let files = files();
    let mut writer = new_log(&files);
    let mut run = Run { files, written: Vec::new(), durable: 0, random: SplitMix(seed), number: 0 };
    for _ in 0..3 {
        run.write_some(&mut writer, imitate);
        drop(writer);
        run.files.0.lose_power(run.random.next());
        run.files.1.lose_power(run.random.next());
        let mode = RecoverMode::PowerLoss;
        let recovered = recover(run.files.0.clone(), run.files.1.clone(), mode);
        let recovered = recovered.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        writer = recovered.writer;
        run.check(&writer);
    }
    run.write_some(&mut writer, imitate);
    let sealed = writer.seal(EPOCH_NS).unwrap();
    assert_eq!(sealed.entry_count, run.written.len() as u64);
    verify_files(&run.files.0, Some(&run.files.1), Some(DISK_BYTES as u64)).unwrap();
    let disk = disk_of(&run.written);
    assert!(replay(&run.files, true).unwrap() == disk);
    assert!(replay(&run.files, false).unwrap() == disk);
}

#[test]
fn nothing_synced_is_lost_and_nothing_unsynced_is_called_damage() {
    (0..120).for_each(|seed| run(seed, false));
}

#[test]
fn data_that_imitates_blocks_does_not_fool_recovery() {
    (1000..1060).for_each(|seed| run(seed, true));
}

#[test]
fn a_lost_index_is_rebuilt_from_blocks_up_to_the_last_one() {
    let files = files();
    let mut writer = new_log(&files);
    let mut random = SplitMix(7);
    let requests: Vec<Request> = (0..1000).map(|n| Request::random(&mut random, n)).collect();
    requests.iter().for_each(|request| writer.append(&[request.append()]).unwrap());
    writer.sync().unwrap();
    drop(writer);
    files.1.damage(|index| index.truncate(4096));
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::PowerLoss).unwrap();
    // 1000 entries: seven blocks of 126 were written, the rest was pending and only the index knew of it.
    assert_eq!(recovered.writer.entry_count(), 7 * 126);
    assert_eq!(recovered.entries_proven_by_blocks, 7 * 126);
    assert!(recovered.torn.is_some());
    let entries = open_entries(&recovered.writer);
    assert!(entries.iter().zip(&requests).all(|(entry, request)| request.is(entry)));
    // Times come back in whole seconds.
    assert_eq!(entries[0].time_ns, EPOCH_NS);
    assert!(
        entries
            .iter()
            .zip(&requests)
            .all(|(entry, r)| entry.time_ns == r.time_ns / 1_000_000_000 * 1_000_000_000)
    );
}

#[test]
fn a_bad_byte_below_a_synced_checkpoint_is_damage_not_a_torn_tail() {
    let files = files();
    let mut writer = new_log(&files);
    let requests: Vec<Request> =
        (0..10).map(|n| Request::sectors(Operation::Write, n * 8, 8, n, EPOCH_NS)).collect();
    for request in &requests {
        writer.append_and_checkpoint(&[request.append()]).unwrap();
        writer.sync().unwrap();
    }
    drop(writer);
    // Data of entry 4: header, first block, and 4 times data and block before it.
    let at = 8192 + 4 * 8192 + 100;
    files.0.damage(|log| log[at] ^= 1);
    let error = recover(files.0.clone(), files.1.clone(), RecoverMode::PowerLoss).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "LOG_CORRUPT");
    assert_eq!(error.place().offset, 8192 + 4 * 8192);
    // The same byte in the last entry, which was synced too, cannot be told from a torn tail: no later block
    // witnesses it. It is cut, and said so.
    files.0.damage(|log| log[at] ^= 1);
    files.0.damage(|log| log[8192 + 9 * 8192 + 100] ^= 1);
    let recovered = recover(files.0.clone(), files.1.clone(), RecoverMode::PowerLoss).unwrap();
    assert_eq!(recovered.writer.entry_count(), 9);
    assert_eq!(recovered.torn.unwrap().offset, 8192 + 9 * 8192);
}
