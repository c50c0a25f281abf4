//! Salvage: of a damaged log come the entries that prove themselves, and nothing else.
#![allow(clippy::unwrap_used, reason = "tests state their expectations with unwrap")]

mod common;

use common::*;
use secondsite_hrl::{Append, salvage};

const COUNT: u64 = 10;

/// Ten writes of one sector: entry n stands at sector n of the disk and at 8192 + 512 n of the log.
fn log(is_sealed: bool) -> (File, File) {
    let files = files();
    let mut writer = new_log(&files);
    for n in 0..COUNT {
        writer.append(&[Append::write(n * 512, &[n as u8 + 1; 512], EPOCH_NS)]).unwrap();
    }
    if is_sealed {
        writer.seal(EPOCH_NS).unwrap();
    }
    files
}

fn salvaged(files: &(File, File)) -> Result<Vec<u64>, &'static str> {
    let mut found = Vec::new();
    let count = salvage(&files.0, &files.1, |entry, data| {
        assert_eq!(data, [(entry.offset / 512) as u8 + 1; 512]);
        found.push(entry.offset / 512);
    });
    let count = count.map_err(|e| e.code())?;
    assert_eq!(count, found.len() as u64);
    Ok(found)
}

fn all_but(missing: &[u64]) -> Vec<u64> {
    (0..COUNT).filter(|n| !missing.contains(n)).collect()
}

#[test]
fn each_entry_stands_or_falls_alone() {
    for is_sealed in [false, true] {
        let cases: [(&str, usize, usize, &[u64]); 4] = [
            ("data", 0, 8192 + 3 * 512 + 7, &[3]),
            ("log header", 0, 44, &[]),
            ("first block", 0, 4096, &[]),
            ("record", 1, 4096 + 5 * 64 + 17, &[5]),
        ];
        for (what, file, at, missing) in cases {
            let files = log(is_sealed);
            [&files.0, &files.1][file].damage(|bytes| bytes[at] ^= 1);
            assert_eq!(salvaged(&files), Ok(all_but(missing)), "{what}, sealed: {is_sealed}");
        }
    }
}

#[test]
fn without_its_index_a_sealed_log_is_read_by_its_blocks_and_an_open_one_gives_nothing() {
    let sealed = log(true);
    sealed.1.damage(Vec::clear);
    assert_eq!(salvaged(&sealed), Ok(all_but(&[])));
    sealed.0.damage(|bytes| bytes[8192 + 4 * 512] ^= 1);
    assert_eq!(salvaged(&sealed), Ok(all_but(&[4])));
    let open = log(false);
    open.1.damage(|bytes| bytes[70] ^= 1);
    assert_eq!(salvaged(&open), Err("LOG_NOT_SEALED"));
}

#[test]
fn a_log_cut_anywhere_gives_what_stands_before() {
    for sectors in 0..COUNT {
        let files = log(false);
        files.0.damage(|bytes| bytes.truncate(8192 + sectors as usize * 512 + 100));
        assert_eq!(salvaged(&files), Ok((0..sectors).collect()), "{sectors} sectors");
    }
}
